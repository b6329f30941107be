"""The benchmark: staffa, the floor of its database and a peer, side by side in one run.

`scripts/bench` runs it. Every measurement is made in fresh processes on a fresh file, and the contenders
take turns within each repetition, so that a machine that slows down slows all of them down.

* contender     who is measured: an implementation of `contender.Contender` in `contenders/` or `floors/`
* floor         the least code that does the same to the database; nothing with features gets below it
* workload      what is measured, in `workloads.py`
* figure        a number that a workload gives for a contender
* probe         shared memory in which job bodies leave their marks
"""

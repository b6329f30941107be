"""How the arguments of a function's call become a job's `args`, and a call again."""

import inspect
from collections.abc import Callable
from typing import Any

from staffa.jobs import Job, JobOptions, RunningJob

__all__ = ["binder", "caller", "wants_job"]


def wants_job(function: Callable[..., Any], signature: inspect.Signature) -> bool:
    first = next(iter(signature.parameters.values()), None)
    if first is None or first.annotation is inspect.Parameter.empty:
        return False
    annotation = first.annotation
    if isinstance(annotation, str):  # from __future__ import annotations
        names = {"Job": Job, "RunningJob": RunningJob, **getattr(inspect.unwrap(function), "__globals__", {})}
        annotation = names.get(annotation) or getattr(
            names.get(annotation.partition(".")[0]), annotation.rpartition(".")[2], None
        )
    return annotation in (Job, RunningJob)


def binder(
    function: Callable[..., Any], signature: inspect.Signature, wants_job: bool
) -> Callable[..., dict[str, Any]]:
    """How a call's arguments become a job's args: by name. The plain cases skip `Signature.bind`, which is slow."""
    parameters = list(signature.parameters.values())[1 if wants_job else 0 :]
    own = signature.replace(parameters=parameters)
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = {
        p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    plain = all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters)
    known = {p.name for p in parameters}

    def bind(*args: Any, **kwargs: Any) -> dict[str, Any]:
        if plain and len(args) <= len(names):
            given = dict(zip(names, args, strict=False))
            if not kwargs or (kwargs.keys() <= known and not kwargs.keys() & given.keys()):
                given.update(kwargs)
                if required <= given.keys():
                    return given
        try:
            return dict(own.bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise TypeError(f"{function.__qualname__}(): {error}{_hint(kwargs.keys() - known)}") from None

    return bind


def _hint(strange: set[str]) -> str:
    if "conn" in strange:
        return "; to enqueue inside a transaction: app.enqueue(f.new(…), conn=…)"
    options = sorted(strange & JobOptions.__annotations__.keys())
    return f"; options go through using: f.using({options[0]}=…).enqueue(…)" if options else ""


def caller(
    function: Callable[..., Any], signature: inspect.Signature, wants_job: bool
) -> Callable[[RunningJob], Any]:
    """How a job's args become a call's arguments again."""
    parameters = list(signature.parameters.values())[1 if wants_job else 0 :]
    if all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters):
        if wants_job:
            return lambda job: function(job, **job.args)
        return lambda job: function(**job.args)

    def call(job: RunningJob) -> Any:
        given = dict(job.args)
        args: list[Any] = [job] if wants_job else []
        for parameter in parameters:
            if parameter.kind is parameter.POSITIONAL_ONLY and parameter.name in given:
                args.append(given.pop(parameter.name))
            elif parameter.kind is parameter.VAR_POSITIONAL and given.get(parameter.name):
                more = given.pop(parameter.name)
                # Then everything before it was given, too; without it, there may be gaps, and names are safe.
                args += [*_positional_before(parameters, given), *more]
            elif parameter.kind is parameter.VAR_POSITIONAL:
                given.pop(parameter.name, None)
            elif parameter.kind is parameter.VAR_KEYWORD:
                given.update(given.pop(parameter.name, {}))
        return function(*args, **given)

    return call


def _positional_before(parameters: list[inspect.Parameter], given: dict[str, Any]) -> list[Any]:
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [given.pop(p.name) for p in parameters if p.kind is kinds and p.name in given]

"""The least code that does to a database what a framework has to do to it."""

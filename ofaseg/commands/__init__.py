"""The commands of `ofaseg`: each module has `add_arguments(parser)` and `run(args) -> exit status`.

They join tasks, data and evaluation, so nothing else imports them.
"""

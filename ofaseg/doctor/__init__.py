"""Checks of everything a run reads, before it runs: shards, raw folders, class lists, checkpoints, configurations.

`examine.examine(paths)` looks at each path and returns findings with their place, cause and cure; `ofaseg doctor` prints them.
"""

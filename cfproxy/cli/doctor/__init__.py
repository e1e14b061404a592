"""What is wrong, and the command that mends it: the checks of `cfproxy doctor`.

Each check is one function that returns findings. None of them spends, renews or changes anything.
"""

"""The command line, with one module per command (`login` has logout, `status` has token).

`main.run` runs a command line. Commands share `options`, `run` (event loop and signals), `terminal` (output)
and `admin_client` (requests to a running proxy). No other package uses this one.
"""

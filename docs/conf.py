# ruff: noqa: INP001 - no package: Sphinx reads it by its path
"""Sphinx configuration for `make docs`. Every warning is an error, including a broken link."""

project = "cfproxy"
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_site", "requirements.*"]
highlight_language = "text"
suppress_warnings = ["misc.highlighting_failure"]  # examples contain … for omitted parts
html_theme = "furo"
html_title = "cfproxy"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False

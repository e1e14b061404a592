# ruff: noqa: INP001 - no package: the generator reads it by its path
"""How the pages become a site: `make docs`. Any warning, a broken link among them, is an error."""

project = "cfproxy"
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_site", "requirements.*"]
highlight_language = "text"
suppress_warnings = ["misc.highlighting_failure"]  # … stands in examples where something is left out
html_theme = "furo"
html_title = "cfproxy"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False

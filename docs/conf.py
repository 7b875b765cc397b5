"""How the documentation is built: `make docs`.

Sphinx with MyST and furo, because they are kept up (MkDocs has had no release since 2024, Material
for MkDocs ends in May 2027, its successor is not at 1.0), refuse any reference that leads nowhere,
and give pages whose search works from the disk, without a server or a network.
"""

import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "generate"), str(HERE.parent / "src")]

import reference  # noqa: E402

project = "dkuxnet"
release = version = metadata.version("dkuxnet")
copyright = "the authors of dkuxnet, MIT licence"
extensions = ["myst_parser", "sphinx_copybutton"]
exclude_patterns = ["generate", "measured", "_build"]
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # types of a signature have no page of their own

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
smartquotes = False  # --set stays as it is typed
highlight_language = "bash"  # of indented blocks: commands
maximum_signature_line_length = 80
add_module_names = False
copybutton_exclude = ".linenos, .gp, .go, .c1"

html_theme = "furo"
html_title = f"dkuxnet {release}"
html_static_path = ["style"]
html_css_files = ["docs.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}

reference.write_pages(HERE / "reference")

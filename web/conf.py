"""How Sphinx makes the pages of the book; tools/build_site.py calls it."""

import importlib.util
from pathlib import Path

project = "Accelerated MRI"
html_title = "Accelerated MRI: a notebook book"
language = "en"
extensions = ["myst_nb"]
exclude_patterns = ["notebooks/frames"]

nb_execution_mode = "off"  # the outputs are those that are stored
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "dollarmath", "html_image"]
myst_heading_anchors = 4

html_theme = "sphinx_book_theme"
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "footer_content_items": [],  # neither an author nor a licence's year to tell
    "navbar_persistent": [],  # the search field stands in the sidebar
}
html_context = {"default_mode": "auto"}  # dark or light, as the reader's system
html_favicon = "static/icon.svg"
html_copy_source = False
html_show_sphinx = False
html_static_path = ["static"]
html_css_files = ["book.css", "sliders.css"]
html_js_files = [("sliders.js", {"defer": "defer"})]

# one file with its glyphs, from the package that carries MathJax
mathjax_path = "tex-svg.js"
carrier = importlib.util.find_spec("sphinx-mathjax-offline")
html_static_path.append(str(Path(carrier.origin).parent / "static" / "mathjax" / mathjax_path))

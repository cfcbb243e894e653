"""Sphinx's settings: Markdown pages, notebooks that run while the site is built, a reference from the docstrings."""

import os
import re
from importlib import metadata
from pathlib import Path

from sphinx.application import Sphinx

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # of the notebooks' kernels, too

project = "sip-plugin"
author = copyright = "The sip-plugin developers"
release = version = metadata.version(project)
urls = dict(
    entry.split(", ") for entry in metadata.metadata(project).get_all("Project-URL") or []
)
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"sip-plugin {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_theme_options = {
    "source_repository": urls["Repository"],
    "source_branch": "main",
    "source_directory": "docs/",
    "footer_icons": [
        {
            "name": "Repository",
            "url": urls["Repository"],
            "html": '<svg viewBox="0 0 16 16" fill="none" stroke="currentColor" stroke-width="1.5">'
            '<path d="M5 3.5.8 8 5 12.5M11 3.5 15.2 8 11 12.5M9.3 2.5 6.7 13.5"/></svg>',
            "class": "",
        }
    ],
}
pygments_dark_style = "monokai"  # furo's own underlines names
html_show_search_summary = (
    False  # it would be fetched, which browsers refuse for files on disk
)

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True  # 8 / 255 and not 0.03137254901960784
napoleon_use_ivar = True
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"
copybutton_exclude = ".linenos, .gp, .go"

# Other libraries' pages are on the network, and the site is built without it. The others are not public: bases, whose
# members are shown with the class that a user has, and names of types.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(torch|Tensor|nn|np|numpy|pandas|matplotlib|NDArray|Figure|collections|os|abc|pathlib|typing)\b.*",
    ),
    (
        r"py:.*",
        r"(.*\.)?(Report|Table|Tabular|MapSequence|MaskSource|Part|Value|_KLMethod)",
    ),
]


def link_to_repository(app: Sphinx, page: str, source: list[str]) -> None:
    """Lead links to files outside ``docs/`` to the repository. In the pages, which are read there too, they are relative."""
    docs = Path(app.srcdir).resolve()

    def link(match: re.Match[str]) -> str:
        text, path, anchor = match.groups(default="")
        target = (docs / page).parent.joinpath(path).resolve()
        if text.startswith("!") or target.is_relative_to(docs):
            return match[0]
        return f"{text}({urls['Repository']}/blob/main/{target.relative_to(docs.parent).as_posix()}{anchor})"

    source[0] = re.sub(r"(!?\[[^\]]*\])\((\.\./[^)#\s]*)(#[^)\s]*)?\)", link, source[0])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", link_to_repository)

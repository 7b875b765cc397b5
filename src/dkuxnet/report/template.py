"""The pages' html templates, and the scripts that go into them: a page runs no other."""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

NIIVUE = "report/vendor/niivue.umd.js"


def render(
    template: str, page: dict[str, Any], scripts: Sequence[str] = (), package: str = "report"
) -> bytes:
    """Fill the template of that name, of a package of ours, or of this one that all pages share.

    Everything in `page` is escaped: names come from outside, and need not be valid Unicode.
    scripts: files of this package that the page runs, in this order. Its Content-Security-Policy
    names each by its hash, so the browser runs no other, whatever a name holds, and loads nothing.
    """
    folders = dict.fromkeys((package, "report"))
    loader = ChoiceLoader([PackageLoader("dkuxnet", folder) for folder in folders])
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    texts = [_script(name) for name in scripts]
    digests = [hashlib.sha256(text.encode("utf-8")).digest() for text in texts]
    hashes = [base64.b64encode(digest).decode("ascii") for digest in digests]
    allowed = " ".join(f"'sha256-{text}'" for text in hashes) or "'none'"
    policy = (
        f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {allowed}"
    )
    filled = environment.get_template(template).render(
        page, scripts=[Markup(text) for text in texts], policy=Markup(policy)
    )
    return filled.encode("utf-8", errors="replace")


@cache
def _script(name: str) -> str:
    """The file as it may stand between script tags; NiiVue takes its licence along."""
    text = files("dkuxnet").joinpath(name).read_text("utf-8")
    if name == NIIVUE:
        licence = files("dkuxnet").joinpath("report/vendor/niivue.LICENSE").read_text("utf-8")
        text = f"/* NiiVue\n{licence}*/\n{text}"
    text = text.replace("\r\n", "\n").replace("</script", r"<\/script").replace("<!--", r"<\!--")
    return f"\n{text}\n"

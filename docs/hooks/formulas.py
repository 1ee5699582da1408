r"""Formulas as MathML, which browsers lay out themselves: no script, no fonts, nothing fetched.

pymdownx.arithmatex finds `$…$` and `$$…$$` and leaves LaTeX between \( \) or \[ \]; latex2mathml translates it.
"""

from __future__ import annotations

import html as htmllib
import re

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def rendered(html: str) -> str:
    """HTML with MathML in place of LaTeX.

    Raises:
        ValueError: a formula can't be read.
    """
    return FORMULA.sub(lambda found: _mathml(found[3], found[2] == "["), html)


def _mathml(latex: str, is_block: bool) -> str:
    text = htmllib.unescape(latex).strip()
    try:
        mathml: str = convert(text, display="block" if is_block else "inline")
    except Exception as error:  # each kind of mistake has a class of its own
        raise ValueError(f"{text!r} must be LaTeX that latex2mathml reads: {type(error).__name__}.") from None
    if "\\" in mathml:  # it passes on commands that it does not know
        raise ValueError(f"{text!r} must be LaTeX that latex2mathml reads, which leaves some of it.")
    return f'<div class="formula">{mathml}</div>' if is_block else mathml

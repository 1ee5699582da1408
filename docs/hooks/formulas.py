r"""Formulas as MathML, which browsers lay out themselves: no script, no fonts, nothing fetched.

pymdownx.arithmatex finds `$…$` and `$$…$$` and leaves LaTeX between \( \) or \[ \]; latex2mathml translates it.
"""

from __future__ import annotations

import html as htmllib
import re
import unicodedata

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)

LETTER = re.compile(r'<mi mathvariant="(script|double-struck|bold)">([A-Za-z])</mi>')


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
    mathml = LETTER.sub(lambda found: f"<mi>{_letter(found[1].upper(), found[2])}</mi>", mathml)
    mathml = mathml.replace("<mo>&#x02016;</mo>", '<mo stretchy="false">&#x02016;</mo>')  # of \lVert and \rVert
    return f'<div class="formula">{mathml}</div>' if is_block else mathml


def _letter(style: str, letter: str) -> str:
    """The character of its own that Unicode has for a styled letter; browsers ignore `mathvariant`."""
    name = f"{style} {'CAPITAL' if letter.isupper() else 'SMALL'} {letter.upper()}"
    try:
        return unicodedata.lookup(f"MATHEMATICAL {name}")
    except KeyError:
        return unicodedata.lookup(name)  # those that Unicode had before, such as ℝ

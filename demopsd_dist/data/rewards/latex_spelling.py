r"""One spelling for each formula: `\dfrac12` and `\frac{1}{2}`, `x^{2}` and `x^2`, `\left( 1, 2 \right)` and `(1,2)`.

Spelling alone: nothing is computed, expanded or reordered. Linear in the text.
"""

from __future__ import annotations

import re

_GREEK = (
    "alpha α beta β gamma γ delta δ epsilon ε varepsilon ε zeta ζ eta η theta θ iota ι kappa κ lambda λ mu μ nu ν xi ξ "
    "pi π rho ρ sigma σ tau τ upsilon υ phi φ varphi φ chi χ psi ψ omega ω Gamma Γ Delta Δ Theta Θ Lambda Λ Xi Ξ Pi Π "
    "Sigma Σ Phi Φ Psi Ψ Omega Ω"
)
_SIGNS = (
    "infty ∞ cdot · times × div ÷ pm ± le ≤ leq ≤ ge ≥ geq ≥ ne ≠ neq ≠ approx ≈ to → rightarrow → cup ∪ cap ∩ "
    "circ ° degree ° emptyset ∅ varnothing ∅ angle ∠ triangle △ mid | lbrace \\{ rbrace \\} langle ⟨ rangle ⟩ "
    "displaystyle left right big Big bigg Bigg bigl bigr Bigl Bigr"
)


def _replacements() -> dict[str, str]:
    """Replacement of each command: a character, another command, or nothing."""
    words, found, name = f"{_GREEK} {_SIGNS}".split(), {}, ""
    for word in words:
        if name and not (word.isascii() and word.isalpha()):
            found[name], name = word, ""
        else:
            name = word
            found[name] = ""
    return found


_COMMANDS = _replacements() | dict.fromkeys(("dfrac", "tfrac", "cfrac"), "\\frac ")
_COMMAND = re.compile(r"\\([A-Za-z]+) ?")
_STYLE = re.compile(
    r"(\\[A-Za-z]+)?\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|operatorname|mbox) ?\{([^{}]*)\}"
)
_THIN_SPACE_IN_NUMBER = re.compile(r"(?<=[0-9])\\, ?(?=[0-9]{3}(?![0-9]))")
_SPACES = re.compile(r"\\[,;: ]|\\quad(?![A-Za-z])|~")
_BARE_ARGUMENT = re.compile(r"(\\sqrt|\\frac(?:\{[^{}]*\})?) ?([0-9A-Za-zα-ωΑ-Ω])")
_EMPTY_DELIMITER = re.compile(r"\\(?:left|right) ?\.")
_NEGATIVE_FRACTION = re.compile(r"(^|[(\[,=])\\frac\{-")
_SCRIPT = re.compile(r"([\^_])\{(-?[0-9]+|[A-Za-zα-ωΑ-Ω°])\}(?![0-9])")
_AROUND = re.compile(r" ?([,;:=+\-*/^_<>|()\[\]{}°·×÷±≤≥≠≈→∪∩∞πθ∠△]) ?")
_CELL_END = re.compile(r" ?(&|\\\\|\\end(?=\{)) ?")
_ROOT = re.compile(r"√ ?(?:\(([^()]*)\)|([0-9]+(?:\.[0-9]+)?|[A-Za-zα-ωΑ-Ω]))")
_POWER_OF_TEN = re.compile(r"(?<=[0-9]) ?[xX] ?(?=10\^)")
_SET = re.compile(r"\{([^{}]*,[^{}]*)\}")
_TIMES = re.compile(r"(?<=[0-9])[·*](?=[0-9])")
_GROUPED = re.compile(r"(?<![0-9.,^])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9,])")
_BRACKET = re.compile(r"[(\[{]")


def plain_spelling(text: str) -> str:
    r"""The text in one spelling. White space must be single spaces.

    Fractions and roots have braces, one-letter and whole-number scripts none; signs and Greek letters are characters;
    sizes (`\left`), styles (`\text{}`) and spaces beside signs and brackets are dropped; `\frac{-a}{b}` is
    `-\frac{a}{b}`. Commas between groups of three digits are dropped where no bracket makes them separators.

    Example: `plain_spelling(r"\left( \dfrac12, 10{,}000 \right)")` gives `r"(\frac{1}{2},10,000)"`.
    """
    text = with_roots(text)
    if "\\" in text or "{" in text:
        text = _plain_commands(text)
    if match := _SET.fullmatch(text):
        text = f"\\{{{match[1]}\\}}"
    text = _POWER_OF_TEN.sub("×", text)
    if not _BRACKET.search(text):
        text = _GROUPED.sub(lambda match: match.group().replace(",", ""), text)
    text = _SCRIPT.sub(r"\1\2", _AROUND.sub(r"\1", text)).replace("^°", "°")
    return _TIMES.sub("×", _NEGATIVE_FRACTION.sub(r"\1-\\frac{", text)).strip()


def with_roots(text: str) -> str:
    r"""The text with `\sqrt{}` in place of the sign √."""
    return _ROOT.sub(lambda match: f"\\sqrt{{{match[1] or match[2]}}}", text)


def _plain_commands(text: str) -> str:
    text = _CELL_END.sub(r"\1", text)
    text = text.replace("{,}", ",").replace("\\!", "").replace("\\%", "%").replace("\\$", "$")
    text = _SPACES.sub(" ", _THIN_SPACE_IN_NUMBER.sub("", text))
    # a space after a command before it, which would else be one word with the text
    text = _STYLE.sub(lambda match: f"{match[1]} {match[2]}" if match[1] else match[2], _EMPTY_DELIMITER.sub("", text))
    text = _COMMAND.sub(lambda match: _COMMANDS.get(match.group(1), match.group()), text)
    text = " ".join(text.split())
    for _ in range(2):  # the first argument of a fraction, then the second
        text = _BARE_ARGUMENT.sub(r"\1{\2}", text)
    return text

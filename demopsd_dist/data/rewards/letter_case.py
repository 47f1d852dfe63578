"""Case of letters: it decides where it carries meaning, in formulas, units and variables, and not in words.

Two answers that differ in case alone are different if

* a part of them, in either case, is a chemical formula or a unit, and not the same one: "CO" and "Co", "mW" and "MW",
  "Mg" and "mg". A spelling that means nothing is lenient: "KG" is "kg", "h2o" is "H2O", "ml" is "mL";
* a letter alone beside digits or signs differs: "12 M" and "12 m", "f(x)" and "F(x)"; likewise a Greek letter;
* a LaTeX command differs.
"""

from __future__ import annotations

import re

_ELEMENT_SYMBOLS = """
    H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb Mo
    Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl
    Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
"""
_PREFIXABLE = "m g s A K mol cd Hz N Pa J W C V F S Wb T H lm lx Bq Gy Sv kat L eV bar cal Wh Ah Nm Da B bit Ω rad t"
_UNPREFIXABLE = "M mM μM nM pM G h in ft min Å mmHg"
_ELEMENTS = frozenset(_ELEMENT_SYMBOLS.split())
_UNITS = frozenset(_PREFIXABLE.split())
_BARE_UNITS = frozenset(_UNPREFIXABLE.split())
_PREFIXES = frozenset(["", *"YZEPTGMkhdcmµμunpfa", "da"])
_BITS = frozenset(f"{prefix}b" for prefix in "kMGTP")
_ATOM = re.compile(r"[A-Z][a-z]?")
_PART = re.compile(r"\\[A-Za-z]+|[0-9][0-9.]*(?:[eE][+-]?[0-9]+)?|[^\W\d_][^\W_]*|[^\w\s]")
_SIGN = re.compile(r"[0-9=+*/^_<>|()\\]")
_GREEK = re.compile("[\u0370-\u03ff]")
_SHORT = 3  # letters of the longest name of a quantity, such as ΔH
_RING = re.compile(r"[bcnops]([0-9])[bcnops()=#\[\]@+\-/\\A-Z]*\1")  # of aromatic atoms in a SMILES formula
_NEVER = frozenset({"no", "ph"})  # read as formulas or units in other cases, but written in any


def same_but_for_case(left: str, right: str) -> bool:
    """Compare two texts without regard to case where case carries no meaning. Linear in the texts."""
    if left.casefold() != right.casefold():
        return False
    if left == right or left.casefold() in _NEVER:
        return True
    if _RING.search(left) or _RING.search(right):
        return False
    parts = list(zip(_PART.findall(left), _PART.findall(right), strict=False))
    formula = bool(_SIGN.search(left))
    return all(one == other or _same_part(one, other, formula, alone=len(parts) == 1) for one, other in parts)


def _same_part(left: str, right: str, formula: bool, alone: bool) -> bool:
    """True where two parts that differ in case mean the same.

    Args:
        formula: the text has digits or signs, so that a lone letter is a variable or a unit.
        alone: the text is this part.
    """
    if left.startswith("\\") or (len(left) <= _SHORT and _GREEK.findall(left) != _GREEK.findall(right)):
        return False
    if left[0].isdigit() or left.casefold() == "ph" or (left.casefold() in _NEVER and not formula):
        return True
    if len(left) == 1:
        return not formula
    meanings = _meanings(left, formula or alone), _meanings(right, formula or alone)
    return not all(meanings) or not meanings[0].isdisjoint(meanings[1])


def _meanings(part: str, may_be_unit: bool) -> set[str]:
    """Formulas and units that this part may be; empty for a word."""
    meanings: set[str] = set()
    letters = re.sub(r"[0-9]", "", part)
    atoms = _ATOM.findall(letters)
    if "".join(atoms) == letters and _ELEMENTS.issuperset(atoms):
        meanings.add(letters)
    if letters in ("KB", "Kb"):  # the usual spelling of a thousand bytes or bits
        letters = letters.replace("K", "k")
    unit = letters[:-1] + "L" if letters.endswith("l") and letters[:-1] in _PREFIXES else letters
    if may_be_unit and letters in _BITS:
        meanings.add(f"unit {letters}")
    if may_be_unit and (unit in _BARE_UNITS or any(unit[:n] in _PREFIXES and unit[n:] in _UNITS for n in (0, 1, 2))):
        meanings.add(f"unit {unit}")
    return meanings

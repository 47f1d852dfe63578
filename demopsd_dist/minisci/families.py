"""MiniSci's families of questions, four in each of four fields, and the openings of a question."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A kind of question: an expression over drawn operands, and the sentences that ask for its value."""

    field: str
    name: str
    expression: str  # operands in braces
    operands: dict[str, tuple[int, int]]  # inclusive range of each
    wordings: tuple[str, ...]
    held_out: str  # wording that is never trained on


FAMILIES = (
    Family(
        "physics",
        "speed",
        "{u}+{a}*{t}",
        {"u": (2, 40), "a": (2, 9), "t": (2, 9)},
        (
            "A car at {u} m/s gains {a} m/s each second. Speed in m/s after {t} s?",
            "A body moves at {u} m/s and speeds up by {a} m/s2 for {t} s. Final speed in m/s?",
            "A train has {u} m/s and an acceleration of {a} m/s2. Speed in m/s after {t} s?",
        ),
        "A bike moves at {u} m/s. Its acceleration is {a} m/s2 for {t} s. Final speed in m/s?",
    ),
    Family(
        "physics",
        "force",
        "{m}*{a}",
        {"m": (2, 12), "a": (2, 9)},
        (
            "What force in N gives {m} kg an acceleration of {a} m/s2?",
            "A body of {m} kg speeds up by {a} m/s2. Force in N?",
            "A cart has a mass of {m} kg and an acceleration of {a} m/s2. Force in N?",
        ),
        "A train of {m} kg has an acceleration of {a} m/s2. What force in N?",
    ),
    Family(
        "physics",
        "work",
        "{f}*{d}-{h}",
        {"f": (3, 12), "d": (3, 9), "h": (2, 8)},
        (
            "A push of {f} N over {d} m loses {h} J to friction. Energy left in J?",
            "A force of {f} N acts over {d} m and {h} J become heat. Useful work in J?",
            "Pull with {f} N for {d} m; friction takes {h} J. Work left in J?",
        ),
        "A force of {f} N acts over {d} m; friction takes {h} J. Energy left in J?",
    ),
    Family(
        "physics",
        "voltage",
        "{i}*({r}+{s})",
        {"i": (2, 9), "r": (2, 6), "s": (2, 6)},
        (
            "A current of {i} A flows through {r} ohm and {s} ohm in series. Voltage in V?",
            "Resistors of {r} ohm and {s} ohm in series carry {i} A. Voltage in V?",
            "What voltage in V drives {i} A through {r} ohm plus {s} ohm?",
        ),
        "A current of {i} A flows through resistors of {r} ohm plus {s} ohm. What voltage in V?",
    ),
    Family(
        "chemistry",
        "molar_mass",
        "12*{c}+{h}",
        {"c": (1, 9), "h": (2, 20)},
        (
            "Molar mass in g/mol of C{c}H{h}?",
            "A hydrocarbon is C{c}H{h}. Its molar mass in g/mol?",
            "What does one mol of C{c}H{h} weigh in g?",
        ),
        "What is the molar mass in g/mol of a hydrocarbon C{c}H{h}?",
    ),
    Family(
        "chemistry",
        "mass",
        "{n}*{m}",
        {"n": (2, 9), "m": (2, 12)},
        (
            "How many g do {n} mol of a gas of {m} g/mol weigh?",
            "A salt has {m} g/mol. Mass in g of {n} mol?",
            "What is the mass in g of {n} mol at {m} g/mol?",
        ),
        "A gas has {m} g/mol. How many g do {n} mol weigh?",
    ),
    Family(
        "chemistry",
        "acid",
        "{c}*{v}+{x}",
        {"c": (2, 9), "v": (2, 12), "x": (2, 40)},
        (
            "Add {x} mmol of acid to {v} mL of {c} M acid. Total in mmol?",
            "A flask holds {v} mL of {c} M acid; {x} mmol are added. Acid in mmol?",
            "Mix {v} mL of {c} M base with {x} mmol more. Total base in mmol?",
        ),
        "A flask holds {v} mL of {c} M base. Add {x} mmol more. Total in mmol?",
    ),
    Family(
        "chemistry",
        "neutrons",
        "{a}-{z}",
        {"a": (52, 99), "z": (11, 49)},
        (
            "An atom has mass number {a} and {z} protons. How many neutrons?",
            "A nucleus of {a} nucleons has {z} protons. Neutrons?",
            "Neutrons of an atom with mass number {a} and atomic number {z}?",
        ),
        "A nucleus has mass number {a} and atomic number {z}. How many neutrons?",
    ),
    Family(
        "biology",
        "energy",
        "4*{c}+9*{f}",
        {"c": (2, 12), "f": (2, 9)},
        (
            "A snack has {c} g of sugar and {f} g of fat. Energy in kcal?",
            "Energy in kcal of {c} g sugar with {f} g fat?",
            "Food holds {f} g of fat and {c} g of sugar. How many kcal?",
        ),
        "How many kcal has food of {c} g of sugar with {f} g of fat?",
    ),
    Family(
        "biology",
        "codons",
        "3*{n}+3",
        {"n": (2, 33)},
        (
            "How many bases code for {n} amino acids and a stop codon?",
            "A gene of {n} codons ends with a stop codon. Bases?",
            "A protein has {n} amino acids. Bases of its gene with the stop codon?",
        ),
        "A gene has {n} codons and a stop codon. How many bases?",
    ),
    Family(
        "biology",
        "growth",
        "{n}+{b}*{t}",
        {"n": (10, 60), "b": (2, 9), "t": (2, 9)},
        (
            "A colony of {n} cells gains {b} cells an hour. Cells after {t} h?",
            "There are {n} fish and {b} more each year. How many after {t} years?",
            "A herd of {n} grows by {b} a year. Size after {t} years?",
        ),
        "There are {n} cells and {b} more an hour. How many after {t} h?",
    ),
    Family(
        "biology",
        "survivors",
        "{n}-{d}*{t}",
        {"n": (85, 99), "d": (2, 9), "t": (2, 9)},
        (
            "Of {n} cells {d} die each hour. Cells left after {t} h?",
            "A pond has {n} fish and loses {d} a week. Fish left after {t} weeks?",
            "A herd of {n} loses {d} a year. Size after {t} years?",
        ),
        "A colony of {n} cells loses {d} an hour. Cells left after {t} h?",
    ),
    Family(
        "materials",
        "expansion",
        "{l}+{a}*{t}",
        {"l": (10, 60), "a": (2, 9), "t": (2, 9)},
        (
            "A rod of {l} mm grows {a} mm per degree. Length in mm after {t} degrees?",
            "A wire of {l} mm stretches {a} mm per kN. Length in mm at {t} kN?",
            "A beam is {l} mm long and gains {a} mm per degree. Length in mm {t} degrees hotter?",
        ),
        "A wire is {l} mm long and grows {a} mm per kN. Length in mm after {t} kN?",
    ),
    Family(
        "materials",
        "density",
        "{d}*{v}",
        {"d": (2, 12), "v": (2, 9)},
        (
            "Mass in g of {v} cm3 of an alloy of {d} g/cm3?",
            "An alloy has {d} g/cm3. What do {v} cm3 weigh in g?",
            "A block of {v} cm3 has a density of {d} g/cm3. Mass in g?",
        ),
        "An alloy has a density of {d} g/cm3. Mass in g of {v} cm3?",
    ),
    Family(
        "materials",
        "layers",
        "{n}*{t}+{s}",
        {"n": (2, 9), "t": (2, 12), "s": (2, 50)},
        (
            "{n} layers of {t} nm lie on a film of {s} nm. Thickness in nm?",
            "A film of {s} nm gets {n} coats of {t} nm. Thickness in nm?",
            "A stack has a base of {s} nm and {n} layers of {t} nm. Height in nm?",
        ),
        "A base of {s} nm gets {n} layers of {t} nm. Thickness in nm?",
    ),
    Family(
        "materials",
        "laminate",
        "{a}*{n}+{b}*{m}",
        {"a": (2, 9), "n": (2, 9), "b": (2, 9), "m": (2, 9)},
        (
            "{n} plies of {a} mm and {m} plies of {b} mm. Thickness in mm?",
            "A panel has {n} sheets of {a} mm and {m} sheets of {b} mm. Thickness in mm?",
            "Glue {n} sheets of {a} mm to {m} sheets of {b} mm. Height in mm?",
        ),
        "A panel has {n} plies of {a} mm and {m} plies of {b} mm. Height in mm?",
    ),
)
FIELDS = tuple(dict.fromkeys(family.field for family in FAMILIES))

# Without openings a small model learns the position of an operand in the prompt instead of its meaning.
OPENINGS = (
    "",
    "",
    "Question: ",
    "Work this out. ",
    "Try this one: ",
    "From the lab: ",
    "Please help. ",
    "Quick check. ",
)

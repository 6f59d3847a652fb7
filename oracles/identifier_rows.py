#!/usr/bin/env python3
"""2,000 made rows of health text with planted identifiers and decoys, and 1,320 numbers with their verdicts by python-stdnum.

Versions: python-stdnum 2.2, Python 3.11 (random.Random of CPython, seed 7). Check digits of what is planted, and the verdict on every
number of the second file, are python-stdnum's, not ours. All persons, addresses and numbers are made up.
    python -m venv v && v/bin/pip install python-stdnum==2.2
    v/bin/python oracles/identifier_rows.py crates/aloe-data/tests/golden
Writes identifier_rows.jsonl: {"text", "planted": [[kind, start, end], ..]} with byte offsets in UTF-8; and identifier_numbers.json:
{kind: [[number, is_valid], ..]}.
Rows were written before the patterns they judge were tuned; half of the rows hold decoys alone.
"""
import json
import random
import sys
from pathlib import Path

from stdnum import iban, luhn
from stdnum.es import dni, nie
from stdnum.gb import nhs
from stdnum.us import ssn

R = random.Random(7)
pick = R.choice


def digits(n, first="0123456789"):
    return pick(first) + "".join(pick("0123456789") for _ in range(n - 1))


# Numbers with check digits ------------------------------------------------------------------------------------------------------


def make_nhs():
    while True:
        body = digits(9, "4679")
        number = body + nhs.calc_check_digit(body) if hasattr(nhs, "calc_check_digit") else next(
            (body + c for c in "0123456789" if nhs.is_valid(body + c)), "")
        if len(number) == 10 and nhs.is_valid(number):
            return number


def make_ssn():
    while True:
        number = f"{digits(3)}-{digits(2)}-{digits(4)}"
        if ssn.is_valid(number):
            return number


def make_dni():
    body = digits(8)
    return body + dni.calc_check_digit(body)


def make_nie():
    body = pick("XYZ") + digits(7)
    return body + nie.calc_check_digit(body)


IBAN_BODIES = {
    "ES": lambda: digits(20), "DE": lambda: digits(18), "FR": lambda: digits(23), "NL": lambda: pick(["ABNA", "INGB", "RABO"]) + digits(10),
    "GB": lambda: pick(["NWBK", "BARC", "LOYD"]) + digits(14), "IT": lambda: pick("QXZ") + digits(22), "PT": lambda: digits(21),
    "BE": lambda: digits(12), "CH": lambda: digits(17), "IE": lambda: "AIBK" + digits(14),
}


def iban_check(country, body):
    number = "".join(str(int(c, 36)) for c in body + country + "00")
    return f"{98 - int(number) % 97:02d}"


def make_iban():
    # stdnum also checks the national parts of some countries; bodies are drawn until it agrees.
    while True:
        country = pick(list(IBAN_BODIES))
        body = IBAN_BODIES[country]()
        number = country + iban_check(country, body) + body
        if iban.is_valid(number, check_country=False):
            return number


def make_card():
    prefix, length = pick([("4", 16), ("51", 16), ("55", 16), ("2221", 16), ("34", 15), ("37", 15), ("6011", 16)])
    body = prefix + digits(length - 1 - len(prefix))
    return body + luhn.calc_check_digit(body)


def spoiled(number):
    """The number with one digit changed."""
    places = [i for i, c in enumerate(number) if c.isdigit()]
    at = pick(places)
    return number[:at] + pick([d for d in "0123456789" if d != number[at]]) + number[at + 1:]


def grouped(text, sizes, sep):
    parts, at = [], 0
    for size in sizes:
        parts.append(text[at:at + size])
        at += size
    if at < len(text):
        parts.append(text[at:])
    return sep.join(parts)


def in_fours(text, sep=" "):
    return grouped(text, [4] * (len(text) // 4), sep)


# Words ----------------------------------------------------------------------------------------------------------------------------

GIVEN = "Margaret Oliver Priya Tomás Aisha Kenji Lucía Henrik Grace Samuel Fatima Joan Marta Pau Elena Wei Chidi Ingrid Noah Carmen".split()
FAMILY = ("Hargreaves Okafor Villanueva Lindqvist Patel Nakamura Ferrer Goldberg Whitcombe Abernathy Castellanos Dubois Petrov "
          "O'Connor Sørensen Iglesias Thornbury Mukherjee Rossi Delacroix").split()
STREETS = "Maple Willow Harbour Victoria Church Mill Oakwood Jefferson Highfield Station Chestnut Albert".split()
TYPES = ["Street", "Road", "Avenue", "Lane", "Drive", "Court", "St", "Ave", "Rd", "Close", "Boulevard", "Terrace"]
CITIES = [("Springfield", "IL", "62704"), ("Madison", "WI", "53703"), ("Eugene", "OR", "97401"), ("Albany", "NY", "12207")]
UK_TOWNS = [("Leeds", "LS1 4DY"), ("Bristol", "BS8 1TH"), ("Norwich", "NR2 3QF"), ("London", "SW1A 2AA"), ("Cardiff", "CF10 3AT")]
ES_STREETS = ["Calle Mayor", "Avenida de la Constitución", "Plaza del Carmen", "Calle de Alcalá", "Paseo de Gracia", "Carrer de Balmes"]
ES_TOWNS = [("28013", "Madrid"), ("08007", "Barcelona"), ("41001", "Sevilla"), ("46002", "Valencia")]
MONTHS = "January February March April May June July August September October November December".split()
ES_MONTHS = "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre".split()
DOMAINS = ["example.org", "mail.example.com", "hospital.example.net", "clinic-north.example.co.uk", "salud.example.es"]


def person():
    return f"{pick(GIVEN)} {pick(FAMILY)}"


def date():
    d, m, y = R.randint(1, 28), R.randint(1, 12), R.randint(1931, 2024)
    return pick([
        f"{d:02d}/{m:02d}/{y}", f"{m}/{d}/{y}", f"{y}-{m:02d}-{d:02d}", f"{d} {MONTHS[m - 1]} {y}", f"{MONTHS[m - 1]} {d}, {y}",
        f"{d:02d}-{MONTHS[m - 1][:3]}-{y}", f"{d} de {ES_MONTHS[m - 1]} de {y}", f"{d:02d}.{m:02d}.{y}", f"{m:02d}/{d:02d}/{y % 100:02d}",
        f"the {d}th of {MONTHS[m - 1]} {y}"[4:] if 4 <= d <= 20 else f"{d} {MONTHS[m - 1][:3]} {y}", f"{d:02d}-{m:02d}-{y}",
    ])


def phone():
    return pick([
        lambda: f"({digits(3, '2345679')}) {digits(3, '23456789')}-{digits(4)}",
        lambda: f"{digits(3, '2345679')}-{digits(3, '23456789')}-{digits(4)}",
        lambda: f"{digits(3, '2345679')}.{digits(3, '23456789')}.{digits(4)}",
        lambda: f"+1 {digits(3, '2345679')} {digits(3, '23456789')} {digits(4)}",
        lambda: f"+44 20 {digits(4, '789')} {digits(4)}",
        lambda: f"+34 {digits(3, '679')} {digits(3)} {digits(3)}",
        lambda: f"020 7946 0{digits(3)}", lambda: f"07700 900{digits(3)}", lambda: f"0161 496 0{digits(3)}",
        lambda: f"{digits(3, '679')} {digits(2)} {digits(2)} {digits(2)}",
        lambda: f"+49 30 {digits(8, '2345')}",
    ])()


def address():
    def us():
        town, state, code = pick(CITIES)
        flat = pick(["", "", f", Apt {digits(1, '123456789')}B"])
        return f"{R.randint(2, 9899)} {pick(STREETS)} {pick(TYPES)}{flat}, {town}, {state} {code}"

    def uk():
        town, code = pick(UK_TOWNS)
        return f"{R.randint(2, 250)} {pick(STREETS)} {pick(TYPES)}, {town} {code}"

    def es():
        code, town = pick(ES_TOWNS)
        return f"{pick(ES_STREETS)} {R.randint(2, 180)}, {code} {town}"

    def street():
        return f"{R.randint(2, 999)} {pick(STREETS)} {pick(TYPES)}"

    return pick([us, uk, es, street])()


def record():
    return pick([digits(7, "123456789"), digits(8, "123456789"), f"{pick('ABHM')}{digits(7)}", f"{digits(2)}-{digits(6)}", f"RX{digits(6)}/{digits(2)}"])


def email():
    who = f"{pick(GIVEN)}.{pick(FAMILY)}".lower().replace("'", "").replace("ø", "o").replace("á", "a").replace("í", "i")
    return pick([who, who.replace(".", "_"), who[0] + who.split(".")[1] + digits(2), who + "+clinic"]) + "@" + pick(DOMAINS)


# Sentences: kind -> templates with one slot -------------------------------------------------------------------------------------

PLANTED = {
    "email": (email, ["Results were sent to {}.", "Please write to {} with the scan.", "E-mail: {}", "Her contact is {}; she prefers e-mail.",
                      "El correo del paciente es {}.", "cc {} and the ward."]),
    "phone": (phone, ["Call the daughter at {} in an emergency.", "Phone: {}", "Tel. {}, evenings only.", "She left the number {} with the nurse.",
                      "Teléfono de contacto: {}.", "Fax the report to {} today."]),
    "date": (date, ["She was admitted on {} with fever.", "DOB: {}", "The stent was placed {} without complications.", "Fecha de nacimiento: {}.",
                    "Discharged {}, stable.", "Symptoms began on {} after a meal.", "Last seen in clinic on {}."]),
    "address": (address, ["He lives at {}.", "Address: {}.", "Home visit at {} next week.", "Domicilio: {}.", "The prescription was posted to {}."]),
    "record_number": (record, ["MRN: {}", "MRN {} was reviewed.", "Medical record number {}.", "Hospital number {}, ward 4.", "Patient ID: {}",
                               "Número de historia clínica: {}.", "NHC {}.", "Chart no. {} is missing."]),
    "us_ssn": (make_ssn, ["SSN {}.", "Social security number: {}", "Insurance form lists {} for the patient.", "The SSN on file is {}."]),
    "uk_nhs": (lambda: pick([lambda n: grouped(n, [3, 3], " "), lambda n: n, lambda n: grouped(n, [3, 3], "-")])(make_nhs()),
               ["NHS number {}.", "NHS No: {}", "The NHS number of the patient is {}.", "NHS number: {}, GP informed."]),
    "es_dni": (lambda: pick([lambda: make_dni(), lambda: make_nie(), lambda: (lambda n: n[:8] + "-" + n[8])(make_dni()),
                             lambda: (lambda n: f"{n[:2]}.{n[2:5]}.{n[5:8]}-{n[8]}")(make_dni())])(),
               ["DNI {}.", "Paciente con DNI: {} y tarjeta sanitaria.", "NIF/NIE: {}", "Identity document {} was shown.", "Documento {}, validado."]),
    "iban": (lambda: pick([lambda n: n, in_fours])(make_iban()),
             ["IBAN {}.", "Reimburse travel to {} please.", "Account for the refund: {}", "Cuenta: {}, titular el paciente."]),
    "payment_card": (lambda: pick([lambda n: n, in_fours, lambda n: in_fours(n, "-")])(make_card()),
                     ["Card {} was charged.", "Paid with {} at the desk.", "Credit card number: {}", "Tarjeta {}, caduca pronto."]),
    "name": (person, ["Mr. {} has crushing chest pain.", "Patient name: {}", "Mrs. {} was seen in clinic.", "Reviewed by Dr. {} on the ward.",
                      "Next of kin: {}, informed.", "Nombre: {}", "My name is {} and I have had a cough for weeks.", "Sra. {} refiere dolor."]),
}
# Names by rule: also a title and a family name alone.
TITLED = ["Mr {} denies smoking.", "Ms. {} takes metformin.", "Dr. {} ordered a scan.", "Dra. {} firma el alta.", "Miss {} fainted at school."]

DECOYS = [
    lambda: f"Hemoglobin {R.randint(70, 170) / 10} g/dL, platelets {R.randint(100, 450)},000/mm3, creatinine {R.randint(5, 30) / 10} mg/dL.",
    lambda: f"BP {R.randint(90, 190)}/{R.randint(50, 110)} mmHg, pulse {R.randint(50, 130)}/min, SpO2 {R.randint(85, 100)}%.",
    lambda: f"Give {pick(['amoxicillin', 'metformin', 'ibuprofen'])} {pick([250, 500, 850])} mg every {pick([6, 8, 12])} h for {R.randint(3, 10)} days.",
    lambda: f"ICD-10 {pick('EIJKM')}{digits(2)}.{digits(1)} and {pick('CDGN')}{digits(2)}.{digits(2)} were coded.",
    lambda: f"{pick(['Parkinson', 'Alzheimer', 'Marfan', 'Crohn', 'Hashimoto', 'Wilson'])}{pick(['', chr(39) + 's'])} {pick(['disease', 'syndrome'])} was considered.",
    lambda: f"Dr. {pick(['Parkinson', 'Alzheimer', 'Apgar', 'Crohn', 'Hodgkin'])} described it first.",
    lambda: f"Variants in {pick(['BRCA1', 'TP53', 'CFTR', 'MLH1', 'HLA-B27'])} (rs{digits(7, '123456789')}, NM_{digits(6)}.{digits(1, '1234')}) were absent.",
    lambda: f"N Engl J Med. {R.randint(1985, 2023)};{R.randint(300, 390)}:{R.randint(100, 2400)}-{R.randint(10, 99)}. PMID: {digits(8, '123')}.",
    lambda: f"doi:10.{digits(4, '1')}/s{digits(5)}-{digits(3)}-{digits(5)}-{digits(1)}; trial NCT0{digits(7)}.",
    lambda: f"In {R.randint(1950, 2023)} the criteria were revised; by {R.randint(1990, 2024)} most centres used them.",
    lambda: f"NDC {digits(4, '0')}-{digits(4)}-{digits(2)}; CAS {digits(2, '5')}-{digits(2)}-{digits(1)}; LOINC {digits(4, '2')}-{digits(1)}.",
    lambda: f"SNOMED CT {digits(8, '7')}; RxNorm {digits(6, '8')}; GCS 15, power {R.randint(0, 5)}/5.",
    lambda: f"ORCID 0000-000{digits(1)}-{digits(4)}-{digits(4)}; ISBN 978-{digits(1)}-{digits(4)}-{digits(4)}-{digits(1)}.",
    lambda: f"Titrate {pick(['25/50/100', '10/20/40'])} mg weekly; half-life {R.randint(2, 30)}-{R.randint(31, 60)} h; available 24/7.",
    lambda: f"{pick(['Rinne', 'Weber', 'Romberg', 'Lachman', 'Phalen'])} test negative; {pick(['Glasgow', 'Apgar', 'Braden', 'Wells'])} score {R.randint(1, 15)}.",
    lambda: f"Test name: {pick(['Rinne Test', 'Coombs Test', 'Western Blot'])}. Drug name: {pick(['Metformin Hydrochloride', 'Aspirin', 'Lisinopril'])}.",
    lambda: f"The {R.randint(2, 9)} French catheter reached the circle of Willis; {R.randint(2, 12)} lead tracing, Hill-Sachs lesion, Baker cyst.",
    lambda: f"Ringer lactate {R.randint(1, 3)} L, vitamin B12 {pick([500, 1000])} mcg, T4 {R.randint(5, 15)} ug/dL, CD4 {R.randint(100, 900)}.",
    lambda: f"Reference {spoiled(make_dni())} and form 000-{digits(2, '123')}-{digits(4, '123')} are not identities.",
    lambda: f"Sample barcode {spoiled(make_card())} was scanned; plate {digits(5)}-{digits(3)}.",
    lambda: f"Lot {spoiled(make_iban())} expired; lot 9{digits(2)}-{digits(2)}-{digits(4)} did not.",
    lambda: f"Specimen {grouped(spoiled(make_nhs()), [3, 3], ' ')} showed no growth.",
    lambda: f"A {R.randint(18, 90)}-year-old man with {R.randint(2, 10)}-{R.randint(11, 20)} stools a day; weight {R.randint(45, 120)} kg.",
    lambda: f"Mild {pick(['Lewy body', 'Creutzfeldt-Jakob', 'Guillain-Barré'])} features; ALKPHOS {R.randint(40, 300)}, AST {R.randint(10, 90)}, ALT {R.randint(10, 90)}.",
    lambda: f"May {R.randint(5, 20)} mg be given? March fracture, Valentine {R.randint(1, 5)} cm mass, Summer 1998 cohort.",
    lambda: f"Ratio 1:{R.randint(10, 320)}, {R.randint(1, 3)}/{R.randint(4, 8)} of nodes, chr{R.randint(1, 22)}:{digits(9, '1')}, p = 0.0{digits(3)}.",
]


def build():
    """Pieces of one row: (text, kind or None)."""
    pieces = []
    if R.random() < 0.5:
        for _ in range(R.randint(1, 3)):
            kind = pick(list(PLANTED))
            maker, templates = PLANTED[kind]
            if kind == "name" and R.random() < 0.3:
                value, template = pick(FAMILY), pick(TITLED)
            else:
                value, template = maker(), pick(templates)
            before, after = template.split("{}")
            pieces.append([(before, None), (value, kind), (after, None)])
    for _ in range(R.randint(0 if pieces else 1, 2)):
        pieces.append([(pick(DECOYS)(), None)])
    R.shuffle(pieces)
    return pieces


def row():
    text, planted = b"", []
    for index, sentence in enumerate(build()):
        if index:
            text += b" "
        for part, kind in sentence:
            start = len(text)
            text += part.encode()
            if kind:
                planted.append([kind, start, len(text)])
    return {"text": text.decode(), "planted": planted}


def numbers():
    table = {}
    for kind, make, valid in [
        ("us_ssn", make_ssn, ssn.is_valid), ("uk_nhs", make_nhs, nhs.is_valid),
        ("es_dni", lambda: pick([make_dni, make_nie])(), lambda n: dni.is_valid(n) or nie.is_valid(n)),
        ("iban", make_iban, lambda n: iban.is_valid(n, check_country=False)), ("luhn", make_card, luhn.is_valid),
    ]:
        rows = []
        for _ in range(120):
            number = make()
            rows.append([number, bool(valid(number))])
            if kind == "us_ssn":
                other = f"{pick(['000', '666', '9' + digits(2), digits(3)])}-{pick(['00', digits(2)])}-{pick(['0000', digits(4)])}"
            else:
                other = spoiled(number)
            rows.append([other, bool(valid(other))])
        if kind == "us_ssn":
            # stdnum also refuses numbers that were printed in advertisements; such a number in a row is still masked by us.
            rows = [one for one in rows if one[0] not in ("078-05-1120", "457-55-5462", "219-09-9999")]
        table[kind] = rows
    return table


out = Path(sys.argv[1])
with open(out / "identifier_rows.jsonl", "w", encoding="utf-8") as file:
    for _ in range(2000):
        file.write(json.dumps(row(), ensure_ascii=False, separators=(",", ":")) + "\n")
(out / "identifier_numbers.json").write_text(json.dumps(numbers(), separators=(",", ":")) + "\n")

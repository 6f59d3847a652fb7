"""Made-up input of prompt_engine.py: generations to parse, vote lists, and questions for a model that answers by rule. All of it is ours.

GENERATIONS: (name, order, generation). The order is prompt_engine's: original letters by shown position.
VOTES: (name, questions); a question is (gold letter, votes as (result, shown letter) in order), votes None when nothing was generated.
QUESTIONS: prompt_engine's format; the last bracket of a question tells the rule by which the stand-in answers (`Llm.answer`).
"""

FIRST_LETTERS = "The iliac crest lies at L4.\nAnswer: "

GENERATIONS = [
    # One bracket, several option counts and orders.
    ("plain", "ABCD", "The spleen filters blood.\nAnswer: [B]"),
    ("plain shuffled", "CADB", "The spleen filters blood.\nAnswer: [B]"),
    ("reversed", "DCBA", "It is the first one shown.\nAnswer: [A]"),
    ("three options", "BCA", "The abstract says so.\nAnswer: [C]"),
    ("five options", "EDCBA", "Only one drug fits.\nAnswer: [E]"),
    ("five options rotated", "BCDEA", "Only one drug fits.\nAnswer: [E]"),
    ("two options", "BA", "True.\nAnswer: [A]"),
    ("full stop behind", "BADC", FIRST_LETTERS + "[C]."),
    ("words behind", "BADC", FIRST_LETTERS + "[C], because the pelvis is tilted."),
    ("bold", "BADC", FIRST_LETTERS + "**[C]**"),
    ("double brackets", "BADC", FIRST_LETTERS + "[[C]]"),
    ("option text behind", "BADC", FIRST_LETTERS + "[C] the sacrum"),
    # No bracket that counts.
    ("no bracket", "ABCD", FIRST_LETTERS + "B"),
    ("round brackets", "ABCD", FIRST_LETTERS + "(B)"),
    ("braces", "ABCD", FIRST_LETTERS + "{B}"),
    ("angle brackets", "ABCD", FIRST_LETTERS + "<B>"),
    ("lower case letter", "ABCD", FIRST_LETTERS + "[b]"),
    ("spaces inside", "ABCD", FIRST_LETTERS + "[ B ]"),
    ("two letters in one bracket", "ABCD", FIRST_LETTERS + "[AB]"),
    ("comma in one bracket", "ABCD", FIRST_LETTERS + "[A, B]"),
    ("placeholder", "ABCD", FIRST_LETTERS + "[X]"),
    ("yes in the bracket", "BAC", "The trial was small.\nAnswer: [yes]"),
    ("letter and text in the bracket", "ABCD", FIRST_LETTERS + "[B. the sacrum]"),
    ("full-width brackets", "ABCD", FIRST_LETTERS + "\uff3bB\uff3d"),
    ("lenticular brackets", "ABCD", FIRST_LETTERS + "\u3010B\u3011"),
    ("cyrillic letter", "ABCD", FIRST_LETTERS + "[\u0412]"),
    ("zero width space inside", "ABCD", FIRST_LETTERS + "[\u200bB]"),
    ("escaped bracket", "ABCD", FIRST_LETTERS + "\\[B\\]"),
    ("latex box", "ABCD", "So we have \\boxed{B}."),
    ("empty", "ABCD", ""),
    ("only space", "ABCD", " \n\t "),
    ("refusal", "ABCD", "I cannot give medical advice."),
    # Letters outside the options.
    ("E of four options", "ABCD", FIRST_LETTERS + "[E]"),
    ("D of three options", "CAB", "The trial was small.\nAnswer: [D]"),
    ("E and B of four options", "DCBA", FIRST_LETTERS + "[E] or rather [B]"),
    # Several brackets: the latest in the order string wins, not the latest in the text.
    ("two behind the marker in text order", "ABCD", FIRST_LETTERS + "[A] or [B]"),
    ("two behind the marker against text order", "ABCD", FIRST_LETTERS + "[B] or [A]"),
    ("two behind the marker shuffled", "CADB", FIRST_LETTERS + "[B], not [A]"),
    ("two behind the marker shuffled the other way", "BDAC", FIRST_LETTERS + "[B], not [A]"),
    ("all four", "BDAC", FIRST_LETTERS + "one of [A], [B], [C] and [D]"),
    ("all five", "EABDC", FIRST_LETTERS + "one of [A], [B], [C], [D] and [E]"),
    ("all three", "CBA", FIRST_LETTERS + "[A] [B] [C]"),
    ("the same twice", "CADB", FIRST_LETTERS + "[D] [D]"),
    # Brackets before and behind the marker.
    ("bracket before and behind", "CADB", "Option [D] is a distractor.\nAnswer: [A]"),
    ("bracket before, none behind", "CADB", "Option [D] is a distractor.\nAnswer: A"),
    ("bracket before, nothing behind the marker", "CADB", "Option [D] is a distractor.\nAnswer: "),
    ("bracket before, marker without space at the end", "CADB", "Option [D] is a distractor.\nAnswer:"),
    ("brackets before, marker without space", "CADB", "Options [A] and [D] differ.\nAnswer:[B]"),
    ("marker without space alone", "CADB", "They differ.\nAnswer:[B]"),
    ("marker with two spaces", "CADB", "Option [B] tempts.\nAnswer:  [D]"),
    ("marker with a tab", "CADB", "Option [B] tempts.\nAnswer:\t[D]"),
    ("marker with a no-break space", "CADB", "Option [B] tempts.\nAnswer:\u00a0[D]"),
    ("marker inside a line", "CADB", "Option [B] tempts. Answer: [D]"),
    ("marker in bold", "CADB", "Option [B] tempts.\n**Answer: [D]**"),
    ("marker in lower case", "CADB", "Option [B] tempts.\nanswer: [D]"),
    ("marker in capitals", "CADB", "Option [B] tempts.\nANSWER: [D]"),
    ("the answer is", "CADB", "Therefore the answer is [D]."),
    ("final answer", "CADB", "Option [B] tempts.\nFinal Answer: [D]"),
    ("indented marker", "CADB", "Option [B] tempts.\n Answer: [D]"),
    ("marker at the very start", "CADB", "Answer: [D]"),
    ("line break and marker at the start", "CADB", "\nAnswer: [D]"),
    ("bracket in front of a marker at the start", "CADB", "[B]\nAnswer: [D]"),
    # Two markers.
    ("two markers", "BADC", "First try.\nAnswer: [A]\nOn second thought.\nAnswer: [C]"),
    ("two markers, the last empty", "BADC", "First try.\nAnswer: [A]\nOn second thought.\nAnswer: none of them"),
    ("two markers, the last without space", "BADC", "First try.\nAnswer: [A]\nOn second thought.\nAnswer:[C]"),
    ("a new question follows", "BADC", "It is so.\nAnswer: [A]\n\nNext question: which bone?\nOptions:\nA. tibia\nAnswer: [D]"),
    ("marker and text below", "BADC", "It is so.\nAnswer: [A]\n\nI excluded [D] because of the fever."),
    # Reasoning tags are text like any other.
    ("thought before the answer", "CADB", "<think>Perhaps [B], perhaps [C].</think>\nAnswer: [A]"),
    ("thought with a marker, answer without", "CADB", "<think>Let us say\nAnswer: [B]\nNo.</think> It is [A]."),
    ("thought without end", "CADB", "<think>Perhaps [B]"),
    ("thought without end and with a marker", "CADB", "<think>I think\nAnswer: [B]"),
    ("only the end of a thought", "CADB", "Perhaps [B].</think>\nIt must be [A]."),
    ("reasoning tag", "CADB", "<reasoning>[C] is out.</reasoning> [A]"),
    # Quotes of options, references, notation.
    ("bracketed letter in an option quote", "ABCD", "The option \"vitamin [A] excess\" is wrong.\nAnswer: [C]"),
    ("option quote without marker", "ABCD", "The option \"vitamin [A] excess\" is wrong, so [C]."),
    ("reference numbers", "ABCD", "Shown before [1][2].\nAnswer: [C] [3]"),
    ("concentration", "ABCD", "The law is v = k[A][B].\nAnswer: [D]"),
    ("concentration without marker", "ABCD", "The law is v = k[A][B], so [C]."),
    ("markdown link", "ABCD", "See [B](note).\nAnswer: nothing"),
    ("json", "ABCD", "{\"answer\": [\"B\"]}"),
    ("list of strings", "ABCD", "['B']"),
    # Line ends, long tails, odd characters.
    ("carriage returns", "CADB", "Option [B] tempts.\r\nAnswer: [D]\r\n"),
    ("carriage return alone", "CADB", "Option [B] tempts.\rAnswer: [D]"),
    ("line separator", "CADB", "Option [B] tempts.\u2028Answer: [D]"),
    ("vertical tab before the marker", "CADB", "Option [B] tempts.\u000bAnswer: [D]"),
    ("unit separator behind", "CADB", "Option [D] tempts.\nAnswer: \u001f"),
    ("next line character behind", "CADB", "Option [D] tempts.\nAnswer: \u0085"),
    ("byte order mark behind", "CADB", "Option [D] tempts.\nAnswer: \ufeff"),
    ("ideographic space behind", "CADB", "Option [D] tempts.\nAnswer: \u3000"),
    ("long tail", "DBAC", "It is so.\nAnswer: [B]" + " and so on" * 120),
    ("long head", "DBAC", "The [A] line is repeated. " * 60 + "\nAnswer: [C]"),
    ("cut in the bracket", "DBAC", "Option [A] tempts.\nAnswer: [C"),
    ("cut in the marker", "DBAC", "Option [A] tempts.\nAnswe"),
    ("combining mark on the letter", "DBAC", "It is so.\nAnswer: [C\u0301]"),
    ("emoji", "DBAC", "It is so \U0001f600.\nAnswer: [C] \U0001f44d"),
    ("another language", "DBAC", "Respuesta correcta: [A]\nAnswer: [C]"),
    ("end of turn left in", "DBAC", "It is so.\nAnswer: [C]<|eot_id|>"),
]


def same(letters):
    """Votes whose shown letter is the result."""
    return [(letter, letter) for letter in letters]


VOTES = [
    ("one question, one vote, right", [("A", same("A"))]),
    ("one question, one vote, wrong", [("A", same("B"))]),
    ("five the same", [("C", same("CCCCC"))]),
    ("three to two, right", [("B", same("BABAB"))]),
    ("three to two, wrong", [("A", same("BABAB"))]),
    ("tie of two, first seen right", [("A", same("AABBC"))]),
    ("tie of two, first seen wrong", [("A", same("BABAC"))]),
    ("tie of two with a late majority", [("A", same("BAAB"))]),
    ("five distinct, first right", [("D", same("DABCE"))]),
    ("five distinct, first wrong", [("E", same("DABCE"))]),
    ("first seen is not in the tie", [("C", same("ABCBC"))]),
    ("none parsed beside a right one", [("A", None), ("B", same("B"))]),
    ("an empty list counts as none parsed", [("A", []), ("B", same("BC"))]),
    ("none parsed at all", [("A", None), ("B", None)]),
    ("one of five parsed", [("A", same("A")), ("B", same("C"))]),
    ("shown letters differ from results", [("A", [("A", "C"), ("A", "D"), ("B", "A")]), ("D", [("D", "A"), ("C", "A"), ("D", "B")])]),
    ("three options", [("A", same("AAB")), ("C", same("CBA")), ("B", same("BB"))]),
    ("two draws, one right", [("A", same("AB")), ("A", same("BA")), ("A", same("AAB"))]),
    ("three-way draw", [("C", same("AABBCC")), ("A", same("AABBCC"))]),
    ("a draw of single votes beside nothing", [("B", same("BC")), ("B", None), ("B", same("CB"))]),
    ("unequal numbers of votes", [("A", same("A")), ("A", same("BBBBBBBBBB")), ("A", same("AAAABBBBC"))]),
    ("twenty votes", [("C", same("CACBCDCACBCDCACBCDCA")), ("A", same("ABABABABABABABABABAB"))]),
    ("many questions", [("ABCD"[i % 4], same("ABCD"[(i * 7 + j * j) % 4] for j in range(5))) for i in range(30)]),
]

MARKED, OTHER = "the marked one", "the other one"
QUESTIONS = {
    "made_up_1": {"question": "Which of these cards carries the mark, seen from the left? (right)", "correct_answer": "A",
                  "options": {"A": MARKED, "B": OTHER, "C": "the blue one", "D": "the last one"}},
    "made_up_2": {"question": "Which of these cards carries the mark, seen from the right? (right)", "correct_answer": "C",
                  "options": {"A": "the blue one", "B": OTHER, "C": MARKED + " \n", "D": " the last one"}},
    "made_up_3": {"question": "Which of these cards carries the mark, seen from above? (late 3)", "correct_answer": "B",
                  "options": {"A": OTHER, "B": MARKED, "C": "the blue one", "D": "the last one"}},
    "made_up_4": {"question": "Which of these cards carries the mark, seen from below? (never)", "correct_answer": "D",
                  "options": {"A": OTHER, "B": "the blue one", "C": "the last one", "D": MARKED}},
    "made_up_5": {"question": "Which of these cards carries the mark, seen in a mirror? (alternating)", "correct_answer": "D",
                  "options": {"A": OTHER, "B": "the blue one", "C": "the last one", "D": MARKED}},
    "made_up_6": {"question": "Which of these cards carries the mark, seen in the dark? (wrong)", "correct_answer": "B",
                  "options": {"A": OTHER, "B": MARKED, "C": "the blue one", "D": "the last one"}},
    "made_up_7": {"question": "Which of these cards carries the mark, \u00e0 la carte? (first)", "correct_answer": "A",
                  "options": {"A": MARKED, "B": "the blue one", "C": "the last one", "D": OTHER}},
}

"""What stands between a prompt and its answer: scripts, punctuation, quotes, headers."""

from __future__ import annotations

import pytest

from errata.data import load_cases
from errata.spacing import AUTO, PUBLISHED, asked, continued, join

SPACED = {
    "English": ("The capital of France is", "Paris"),
    "Vietnamese": ("Thủ đô của Pháp là", "Paris"),
    "Turkish": ("Fransa'nın başkenti", "İstanbul"),
    "Russian": ("Столица Франции —", "Париж"),
    "Greek": ("Η πρωτεύουσα της Γαλλίας είναι το", "Παρίσι"),
    "Armenian": ("Ֆրանսիայի մայրաքաղաքը", "Փարիզն"),
    "Georgian": ("საფრანგეთის დედაქალაქია", "პარიზი"),
    "Hebrew": ("בירת צרפת היא", "פריז"),
    "Arabic": ("عاصمة فرنسا هي", "باريس"),
    "Persian": ("پایتخت فرانسه", "پاریس"),
    "Hindi": ("फ़्रांस की राजधानी", "पेरिस"),
    "Bengali": ("ফ্রান্সের রাজধানী", "প্যারিস"),
    "Tamil": ("பிரான்சின் தலைநகரம்", "பாரிஸ்"),
    "Amharic": ("የፈረንሳይ ዋና ከተማ", "ፓሪስ"),
    "Korean": ("프랑스의 수도는", "파리"),
}
SPACELESS = {
    "Chinese": ("法国的首都是", "巴黎"),
    "traditional Chinese": ("法國的首都是", "巴黎"),
    "Japanese": ("フランスの首都は", "パリ"),
    "Japanese, Hiragana": ("それは", "ねこ"),
    "Thai": ("เมืองหลวงของฝรั่งเศสคือ", "ปารีส"),
    "Lao": ("ນະຄອນຫຼວງຂອງຝຣັ່ງແມ່ນ", "ປາຣີ"),
    "Khmer": ("រដ្ឋធានីនៃប្រទេសបារាំងគឺ", "ប៉ារីស"),
    "Burmese": ("ပြင်သစ်နိုင်ငံ၏မြို့တော်မှာ", "ပါရီ"),
    "Tibetan": ("ཕ་རན་སིའི་རྒྱལ་ས་ནི་", "ཕ་རི"),
}


@pytest.mark.parametrize("script", SPACED)
def test_scripts_with_spaces_get_one(script: str) -> None:
    prompt, target = SPACED[script]
    assert continued(prompt, target) == (prompt, f" {target}")
    assert continued(f"{prompt} ", target) == (prompt, f" {target}")
    assert join(prompt, target) == join(prompt, target, PUBLISHED)


@pytest.mark.parametrize("script", SPACELESS)
def test_scripts_without_spaces_get_none(script: str) -> None:
    prompt, target = SPACELESS[script]
    for typed in (prompt, f"{prompt} "):  # a space typed by habit is none of the script's
        assert continued(typed, target) == (prompt, target)
    assert continued(f"{prompt}:", target) == (f"{prompt}:", target)
    assert continued(prompt, "Paris") == (prompt, "Paris")


@pytest.mark.parametrize(
    ("prompt", "target"),
    [
        ("The capital is", ", of course, Rome"),
        ("It is in Rome", "."),
        ("Is it Rome", "?"),
        ("(the capital is Rome", ")"),
        ("It is Anna", "'s"),
        ("It is Anna", "’s"),
        ("It grew by 5", "%"),
        ("It is a Rome", "-based firm"),
        ("中国的首都是", "。"),
        ("The capital is\n", "Rome"),
        ("Question: …\tAnswer:\t", "Rome"),
        ("<|im_start|>assistant\n", "Rome"),
        ("<|user|>Which?<|assistant|>", "Rome"),
        ("[INST] Which? [/INST]", "Rome"),
        ("It is (", "Rome"),
        ('He said "', "Rome"),
        ("He said “", "Rome"),
        ("Er sagte „", "Rom"),
        ("Il a dit «", "Rome"),
        ("It is **", "Rome"),
        ("It costs $", "5"),
        ("The Franco-", "Prussian"),
        ("", "Rome"),
    ],
)
def test_nothing_stands_where_nothing_belongs(prompt: str, target: str) -> None:
    assert continued(prompt, target) == (prompt, target)


@pytest.mark.parametrize(
    ("prompt", "target"),
    [
        ('He said "yes" and', "left"),
        ('His "house"', "burnt"),
        ("3 + 4 =", "7"),
        ("Answer:", "Rome"),
        ("It is", "8848"),
        ("It is", "-5"),
        ("It costs", "$5"),
        ("It is", '"Rome"'),
        ("It is", "(probably) Rome"),
        ("It is", "#1"),
        ("It is", "'Rome'"),
        ("Le mot est", "«Rome»"),
        ("The year 2024 was", "¡olé!"),
        ("It happened in 1990", "BC"),
        ("The Chinese word 北京 means", "Beijing"),
    ],
)
def test_a_space_stands_between_words(prompt: str, target: str) -> None:
    assert continued(prompt, target) == (prompt, f" {target}")


def test_white_space_of_an_answer_is_its_own() -> None:
    assert continued("It is", " Rome") == ("It is", " Rome")
    assert continued("It is ", " Rome") == ("It is ", " Rome")  # two, as both were typed
    assert continued("It is", "\nRome") == ("It is", "\nRome")


@pytest.mark.parametrize("prompt", ["It is", "It is ", "法国的首都是", "He said “"])
def test_a_text_is_put_there_as_it_is(prompt: str) -> None:
    assert continued(prompt, "Rome", "") == (prompt, "Rome")
    assert continued(prompt, "Rome", " ") == (prompt, " Rome")
    assert continued(prompt, "Rome", " → ") == (prompt, " → Rome")
    assert continued(prompt, " Rome", " ") == (prompt, " Rome")


def test_without_an_answer_one_space_at_the_end_goes() -> None:
    assert asked("It is ") == "It is"
    assert asked("It is  ") == "It is "
    assert asked("It is\n") == "It is\n"
    assert asked(" ") == " "
    assert asked("It is ", PUBLISHED) == "It is "


@pytest.mark.parametrize("name", ["counterfact", "zsre", "mquake", "uniedit", "rep"])
def test_published_data_sets_keep_their_rule(name: str) -> None:
    """Whatever a record says, its text is the published one: a space unless it brings its own."""
    cases = load_cases(f"{name}:sample").cases
    questions = [q for case in cases for q in (*case.edits, *case.probes)]
    questions += [hop for case in cases for probe in case.probes for hop in probe.hops]
    for question in questions:
        published = continued(question.prompt, question.target, PUBLISHED)
        assert continued(question.prompt, question.target, question.joiner) == published
    said = {question.joiner for question in questions}
    # ordinary English needs no word about it; zsRE's suffix ends in a space
    assert said == ({AUTO, PUBLISHED} if name == "zsre" else {AUTO})

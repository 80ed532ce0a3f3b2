"""Languages: the Universal Declaration of Human Rights, first article, in each; mixtures; what cannot be told."""

from __future__ import annotations

import json
import re

import pytest

from data_prep.conversation import Conversation, Message
from data_prep.quality.languages import LANGUAGES, detect, detect_conversation

TEXTS = {
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with reason.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón.",
    "pt": "Todos os seres humanos nascem livres e iguais em dignidade e em direitos. Dotados de razão.",
    "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di ragione.",
    "nl": "Alle mensen worden vrij en gelijk in waardigheid en rechten geboren. Zij zijn begiftigd met verstand.",
    "sv": "Alla människor är födda fria och lika i värde och rättigheter. De har utrustats med förnuft och samvete.",
    "da": "Alle mennesker er født frie og lige i værdighed og rettigheder. De er udstyret med fornuft og samvittighed.",
    "fi": "Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan. Heille on annettu järki.",
    "pl": "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw. Są oni obdarzeni rozumem.",
    "cs": "Všichni lidé rodí se svobodní a sobě rovní co do důstojnosti a práv. Jsou nadáni rozumem a svědomím.",
    "hu": "Minden emberi lény szabadon születik és egyenlő méltósága és joga van. Az emberek, ésszel bírván.",
    "ro": "Toate ființele umane se nasc libere și egale în demnitate și în drepturi. Ele sunt înzestrate cu rațiune.",
    "tr": "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. Akıl ve vicdana sahiptirler.",
    "id": "Semua orang dilahirkan merdeka dan mempunyai martabat dan hak-hak yang sama. Mereka dikaruniai akal.",
    "vi": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền. Mọi con người đều được.",
    "tl": "Ang lahat ng tao'y isinilang na malaya at pantay-pantay sa karangalan at mga karapatan.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью.",
    "uk": "Всі люди народжуються вільними і рівними у своїй гідності та правах. Вони наділені розумом і совістю.",
    "bg": "Всички хора се раждат свободни и равни по достойнство и права. Те са надарени с разум и съвест.",
    "el": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "ar": "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق.",
    "fa": "تمام افراد بشر آزاد به دنیا می‌آیند و از لحاظ حیثیت و حقوق با هم برابرند.",
    "he": "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "ja": "すべての人間は、生れながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "zh": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心。",
}


@pytest.mark.parametrize("language", TEXTS)
def test_each_language(language):
    assert detect(TEXTS[language]) == language
    assert language in LANGUAGES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "und"),
        ("42", "und"),
        ("Squirrel", "und"),
        ("2x + 6 = 10", "und"),
        ("🙂🙂", "und"),
        ("\ud800 \x00", "und"),
        ("파이썬으로 합을 구하세요.\ndef add(a, b):\n    return a + b  # the sum of a and b", "ko"),
        ("Translate this sentence of the book into Korean, please.\n안녕", "en"),
        ("東京の天気", "ja"),
        ("ㅋㅋㅋ ㅠㅠ", "ko"),
    ],
)
def test_short_and_mixed_text(text, expected):
    assert detect(text) == expected


def test_only_the_beginning_of_a_long_text_is_looked_at():
    assert detect("이 문장은 한국어입니다. " * 40 + TEXTS["en"] * 1000) == "ko"


def test_a_conversation_is_judged_by_its_first_question_and_answer():
    turns = [("system", "너는 도우미야."), ("user", "What is the opposite of hot?"), ("assistant", "Cold.")]
    messages = tuple(Message(role, text) for role, text in turns)
    assert LANGUAGES[detect_conversation(Conversation(messages, "s", 0))] == "en"
    assert len(set(LANGUAGES)) == len(LANGUAGES) < 256 and LANGUAGES[0] == "und"


CODE = "def add(a, b):\n    return a + b  # the sum of the two, and what is to be printed\n" * 9


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("합을 구하세요.", CODE, "ko"),
        ("HTML로 표를 쓰세요.", "<table><tr><td>1</td></tr></table>", "ko"),
        ("가장 긴 영어 단어", "Supercalifragilisticexpialidocious", "ko"),
        ("Напишите код на Python", CODE, "ru"),
        ("翻译成英文：你好", "Hello, how are you? It is nice to meet you.", "zh"),
        ("What does the word 안녕하세요 mean? Tell me.", "It is a greeting of the Koreans.", "en"),
        ("Translate to Korean: the sky", "하늘", "en"),
    ],
)
def test_a_question_mostly_in_another_script_decides(question, answer, expected):
    messages = (Message("user", question), Message("assistant", answer))
    assert LANGUAGES[detect_conversation(Conversation(messages, "s", 0))] == expected


@pytest.mark.parametrize(
    ("file", "language", "share"),
    [("en/alpaca_52k.json", "en", 0.98), ("ko/koalpaca_v1_11432.json", "ko", 0.99)],
)
def test_real_sets(shared_data, file, language, share):
    rows = json.loads((shared_data / "text" / file).read_text(encoding="utf-8"))[:5000]
    found = [detect(row["instruction"] + "\n" + row["output"]) for row in rows]
    assert found.count(language) / len(found) > share


def test_every_korean_question_of_a_real_set_is_korean(shared_data):
    rows = json.loads((shared_data / "text/ko/koalpaca_v1_11432.json").read_text(encoding="utf-8"))
    texts = [(row["instruction"], row["output"]) for row in rows]
    latin_answers = [(q, a) for q, a in texts if re.search("[가-힣]", q) and not re.search("[가-힣]", a)]
    mostly = [(q, a) for q, a in latin_answers if len(re.findall("[가-힣]", q)) > len(re.findall("[A-Za-z]", q))]
    found = [
        LANGUAGES[detect_conversation(Conversation((Message("user", q), Message("assistant", a)), "s", 0))]
        for q, a in mostly
    ]
    assert len(mostly) > 100 and set(found) == {"ko"}

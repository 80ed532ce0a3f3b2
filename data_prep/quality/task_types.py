"""The task type of a conversation, estimated by rules in English and Korean, for the report and for balancing.

    explanation     what is known: facts, causes, comparisons, how-to, and answers that lie in a given text
    generation      text that was not there before: stories, mails, slogans, ideas, plans; also rewriting, translating
    summarisation   a shorter form of a text: summary, key points
    reasoning       to compute, to solve, to convert, to deduce, puzzles
    classification  a label, a choice, a judgement, a rating, a part of speech
    coding          code asked for, given, or in the answer
    dialogue        talk without a task: greetings, feelings, turns that only go on
    other           none of these

The rules look at the first question: its first line, or its last one where a text comes first. Code and words such as
"summarize", "classify", "calculate" decide first; else the verb does: the first one in English, the last one in Korean,
where it ends the sentence. Texts in other languages are judged by what needs no words (code, a question mark) and are
"other" otherwise. tests/benchmarks/task_type_accuracy.py measures how often the rules agree with human labels: about
three times out of four on rows that nobody looked at when the rules were written.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_prep.conversation import Conversation

TASK_TYPES: tuple[str, ...] = (
    "explanation",
    "generation",
    "summarisation",
    "reasoning",
    "classification",
    "coding",
    "dialogue",
    "other",
)
UNKNOWN = 255  # in the place of an index into TASK_TYPES or languages.LANGUAGES: not looked up
EXPLANATION, GENERATION, SUMMARISATION, REASONING, CLASSIFICATION, CODING, DIALOGUE, OTHER = range(len(TASK_TYPES))

_LINE_CHARACTERS = 240  # of a line are looked at
_TEXT_FIRST = 200  # a first line this long is a text, and the question follows it
_CODE_CHARACTERS = 400  # of a question and of an answer are searched for code
_CHAT_TURNS = 3  # so many questions in a row without a task's words are a dialogue
_CHAT_CHARACTERS = 60  # longer statements are no small talk


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Code itself. The literals are tried first, as almost no text has one.
_CODE_HINTS = ("```", "def ", "import ", "SELECT ", "</", "{\n", ");", "#include", "function ", "public ", "= [")
_CODE = re.compile(
    r"```|^\s*(?:def \w+\(|import \w|from \w+ import|#include|public |function \w*\(|SELECT .+\sFROM |<html|<!DOCTYPE)"
    r"|\);$|\{\n|</\w+>|\w\(\):\n|^\w+ = \[",
    re.MULTILINE,
)

# English, lower case. "Lead" is the first word that may be a verb.
_CODE_WORDS = _words("sql regex pseudocode javascript html css python c++ c# php typescript java")
_CODE_ASKED = re.compile(
    r"\b(?:write|create|implement|generate|debug|construct|design|refactor|optimize|code|build|develop|edit|fix)\b"
    r".{0,40}\b(?:code|function|algorithm|query|regular expression|program to|program that|script to|script that)\b"
    r"|(?:piece of|given|following|this) (?:code|function|program)\b"
)
_CODE_NOUNS = ("code", "function", "algorithm", "query", "regular expression", "program", "script")
_SUMMARY_WORDS = _words(
    "summarize summarise summary summaries summarizing summarising tl;dr tldr condense gist abridge recap"
)
_SUMMARY_PHRASES = (
    "key point",
    "main point",
    "main idea",
    "key takeaway",
    "in a nutshell",
    "key ideas",
    "main theme",
    "central idea",
)
_CLASS_LEADS = _words(
    "rate label determine detect tag choose pick select judge sort group check verify assign rank assess vote evaluate"
)
_CLASS_WORDS = _words("classify classifying categorize categorise categorizing sentiment grammatically")
_CLASS_PHRASES = (
    "true or false",
    "which of the following",
    "which word",
    "which one",
    "which is a",
    "odd one out",
    "figure of speech",
    "figurative language",
    "part of speech",
    "parts of speech",
    "yes or no",
    "correct option",
    "following options",
    "pick your answer",
    "fact or opinion",
    "positive or negative",
    "what type of sentence",
    "what kind of sentence",
    "which type of sentence",
    "which kind of sentence",
    "does the sentence",
    "is the sentence",
    "is this sentence",
    "tone of the",
    "belong to",
    "belongs to",
    "same meaning or",
    "identify the type",
    "identify the parts",
    "identify the tense",
)
_CHOICES = (" or ", "either", "whether", " if ")  # _CLASS_CHOICE holds one of them
_CLASS_CHOICE = re.compile(
    r"\b(?:identify|tell me|decide|state|which)\b[^.?]{0,70}(?: or |\beither\b|\bwhether\b| if )"
)
_REASON_LEADS = _words(
    "calculate compute solve simplify factor factorize deduce estimate count infer predict increment"
)
_REASON_WORDS = _words(
    "puzzle riddle equation equations derivative integral hypotenuse perimeter fahrenheit celsius math"
)
_REASON_PHRASES = (
    "step by step",
    "comes next",
    "next number",
    "how many more",
    "median of",
    "mean of",
    "average of",
    "logic",
    "sequence",
)
_REASON_ASKED = re.compile(r"\b(?:calculate|compute|solve)\b")
_DIGIT = re.compile(r"\d")
_REASON_NUMBERS = re.compile(
    r"\d\s*[-+*/×÷^=%]\s*\(?\d|\bconvert\b[^.]{0,40}\d|\b(?:find|reverse|how (?:many|much|far|long|old))\b"
    r"[^.]{0,120}\d.{0,80}\d"
)
_GENERATE_LEADS = _words(
    "write create generate compose draft craft make design produce construct develop devise invent suggest propose"
    " brainstorm imagine rewrite re-write rephrase paraphrase edit translate convert transform change replace rearrange"
    " reword revise improve add insert combine form turn formulate build fill complete correct modify expand shorten"
    " rework substitute reorganize remove plan pretend reply respond come recommend update finish extend delete fix"
    " restate adapt redesign arrange prepare proofread punctuate reconstruct enhance think tweet conjugate capitalize"
    " restructure reformulate format customize standardize put recite offer convince simulate narrate adjust advance"
    " organize place repeat sing reverse"
)
_EXPLAIN_LEADS = _words(
    "explain describe what who whom whose when where why how which list name identify define tell discuss compare"
    " contrast give outline provide find state analyze analyse answer elaborate research mention show illustrate"
    " extract explore interpret highlight locate point indicate specify cite enumerate examine clarify what's who's"
    " demonstrate recall detail is are was were do does did can could should would will has have get share display"
    " retrieve compile output present parse describing"
)
_LEADS = _CLASS_LEADS | _CLASS_WORDS | _REASON_LEADS | _GENERATE_LEADS | _EXPLAIN_LEADS
_ARTICLES = _words("a an the this these of your my given following each any some")  # after them it is a noun
_GIVING_LEADS = _words("give provide list name share tell show get compile")  # what is given decides: ideas or facts
_IDEAS = re.compile(
    r"\b(?:ideas?|slogans?|names? for|taglines?|jokes?|poems?|haikus?|story|stories|essay|metaphors?|similes?|puns?"
    r"|analog(?:y|ies)|headlines?|captions?|lyrics|suggestions?|recommendations?|adjectives|another way|other words"
    r"|sentences?|itinerary|rhymes?|quotes?|questions|synonyms?|title|tips on|advice)\b"
)
_TALK_LEADS = _words("what who how where are do does did can could would have has is tell").union([""])
_TALK = re.compile(
    r"^(?:hi|hello|hey|thanks|thank|bye|goodbye|lol|haha|sorry|yes|no|okay)\b|who are you|your name|how are you"
    "|are you |your favou?rite|do you (?:like|have|feel)|about yourself|nice to meet|good morning|good night|nice day"
    "|made you|created you|i am |i'm |i feel"
)

# Korean stems, since endings vary.
_KO_CODE = re.compile(
    "파이썬|자바스크립트|쿼리|정규식|정규 표현식|디버|HTML|SQL|CSS|Python|python|JavaScript|PyTorch|코드를|코드 "
    "|코딩|(?:함수|알고리즘|프로그램|스크립트)[을를] (?:작성|만|생성|구현|설계|구축)"
)
_KO_SUMMARY = re.compile("요약|간추|핵심만|핵심 내용|요점|줄거리")
_KO_REASON = re.compile(
    "계산|풀어|푸세요|푸십시오|풀이|방정식|확률|구하시오|구하세요|구하십시오|구합니다|구하라|구하기|구해|구하고"
    "|미분|적분|몇 (?:개|명|마리|자루|벌|자리)|추론|퍼즐|수수께끼|다음에 올|섭씨|화씨|범인|합계|평균을|증명하"
    "|인수분해|제곱|집합|내적|유사도를|다항식|공식화|확장된 형태|자릿수|정렬|반전|뒤집|병합|더하기|곱하|합산|세어"
    "|개수|예측|예상하|추측|증가시|반환|오름차순|내림차순|누락된 숫자|중앙값|으로 나눕니다"
)
_KO_CLASS = re.compile(
    "분류|판단하|판별|고르|골라|선택하|맞는지|아닌지|참인지|참 또는|감정을 분석|감성 분석|긍정|평가하|평가해"
    "|카테고리|품사|주어와|식별|잘못된 것|옳은 것|알맞은|등급을|운율 체계|문장 유형|감지하|주요 주제|어느 것"
    "|태그를|레이블|범주|나눕니다|여부를|결정하|결정합|파악|인식하|확인하|순위|그룹|동의하|할당|점수를"
)
_KO_VERB = re.compile(
    "(?P<generation>작성|생성|만드|만들|만듭|지어|짓기|쓰세요|쓰십시오|써줘|써 줘|써보|써 보|써라|다시 쓰|바꾸"
    "|바꿔|바꿉|번역|제안|추천|디자인|재배열|배열하|배열해|배치|수정|고쳐|고치|교정|완성|추가|대체|세우|세워|상상"
    "|묘사|창작|변경|편집|구성하|구성합|답장|짜줘|짜 줘|인용하|떠올|발명|개발하|구상|결합|삽입|합쳐|다시 말|설계"
    "|제작|전개|변환|채우|표현하|그려|계획을|쉼표|연결하|단축|생각해|들려|작곡|구축|비유하|압축|삭제|제거|모델링"
    "|정리하|분할|준비)|(?P<explanation>설명|무엇|뭐야|뭔가|뭔지|뭐가|뭐지|뭘까|무슨|왜|어떻게|어떤|알려|나열"
    "|차이|비교|이유|말하|말해|누구|누가|언제|어디|어느|얼마|가요|니까|나요|까요|정의|소개|예를 들|예로 들|제시"
    "|찾아|찾으|찾습|찾기|논하|논의|분석|답하|대답|궁금|방법|밝히|토론|의미|기술하|서술|열거|이름을|발표|제공"
    "|명시|확장|알아|검색|검토|표시|출력|\\?)"
)
_KO_REQUEST = re.compile(r"(?:세요|시오|니다|해줘|해 줘|하라|해라|하기|짓기|아라|어라)[.!:]?\s*$")
_KO_TALK = re.compile(
    r"안녕|고마워|ㅋㅋ|ㅠ|ㅎㅎ|싶어|싶다|같아|반가|힘들|좋아해|(?:^|\s)(?:나는|난|내가|나|너는|넌|우리)\s"
)


def classify(conversation: Conversation) -> int:
    """The conversation's task type as an index into TASK_TYPES."""
    questions = [m.content for m in conversation.messages if m.role == "user"]
    answer = next((m.content for m in conversation.messages if m.role == "assistant"), "")
    return classify_text(questions[0] if questions else "", answer, len(questions))


def classify_text(question: str, answer: str = "", num_questions: int = 1) -> int:
    """The task type of a first question, its answer, and the number of questions in the whole conversation."""
    if _has_code(answer) or _has_code(question):
        return CODING
    question = question.strip()
    first = question[:_LINE_CHARACTERS].partition("\n")[0]
    found = OTHER if len(first) >= _TEXT_FIRST else _by_rules(first)
    if found in (DIALOGUE, OTHER) and len(first) < len(question):
        last = _by_rules(question[-_LINE_CHARACTERS:].rpartition("\n")[2])
        found = found if last == DIALOGUE else last  # the text that a task is about may sound like talk
    if found in (DIALOGUE, OTHER):
        small_talk = found == DIALOGUE and len(question) <= _CHAT_CHARACTERS
        return DIALOGUE if small_talk or num_questions >= _CHAT_TURNS else OTHER
    return found


def _has_code(text: str) -> bool:
    start = text[:_CODE_CHARACTERS]
    return _holds(start, _CODE_HINTS) and _CODE.search(start) is not None


def _holds(text: str, literals: tuple[str, ...]) -> bool:
    """Several times as fast as a pattern of alternatives, or any()."""
    for literal in literals:  # noqa: SIM110
        if literal in text:
            return True
    return False


def _by_rules(line: str) -> int:
    korean = not line.isascii() and any("가" <= c <= "힣" or "ㄱ" <= c <= "ㅣ" for c in line)
    return _korean(line) if korean else _english(line.lower())


def _english(text: str) -> int:
    ordered = text.replace("?", " ").replace(",", " ").replace(":", " ").replace(".", " ").split()
    words, lead = frozenset(ordered), _leading_verb(ordered)
    if _asks_for_code(text, words, lead):
        return CODING
    if not _SUMMARY_WORDS.isdisjoint(words) or _holds(text, _SUMMARY_PHRASES):
        return SUMMARISATION
    if lead in _REASON_LEADS or (_DIGIT.search(text) and _REASON_NUMBERS.search(text)):
        return REASONING
    if lead in _GENERATE_LEADS:
        return GENERATION
    if lead in _CLASS_LEADS or not _CLASS_WORDS.isdisjoint(words) or _asks_to_choose(text):
        return CLASSIFICATION
    if not _REASON_WORDS.isdisjoint(words) or _asks_to_reason(text):
        return REASONING
    return _english_rest(text, lead)


def _english_rest(text: str, lead: str) -> int:
    if lead in _GIVING_LEADS and _IDEAS.search(text):
        return GENERATION
    if lead in _TALK_LEADS and _TALK.search(text):
        return DIALOGUE
    return EXPLANATION if lead or "?" in text else OTHER


def _asks_for_code(text: str, words: frozenset[str], lead: str) -> bool:
    if lead not in ("what", "who", "why") and not _CODE_WORDS.isdisjoint(words):
        return True
    return _holds(text, _CODE_NOUNS) and _CODE_ASKED.search(text) is not None


def _asks_to_choose(text: str) -> bool:
    return _holds(text, _CLASS_PHRASES) or (_holds(text, _CHOICES) and _CLASS_CHOICE.search(text) is not None)


def _asks_to_reason(text: str) -> bool:
    return _holds(text, _REASON_PHRASES) or _REASON_ASKED.search(text) is not None


def _leading_verb(words: list[str]) -> str:
    before = ""
    for word in words:
        if word in _LEADS and before not in _ARTICLES:
            return word
        before = word
    return ""


def _korean(line: str) -> int:
    for task_type, pattern in ((CODING, _KO_CODE), (SUMMARISATION, _KO_SUMMARY), (REASONING, _KO_REASON)):
        if pattern.search(line):
            return task_type
    verb, at = "", 0
    for match in _KO_VERB.finditer(line):
        verb, at = match.lastgroup or "", match.start()
    judged = _KO_CLASS.search(line)
    if judged and not (verb == "generation" and at > judged.start()):
        return CLASSIFICATION
    if verb == "generation":
        return GENERATION
    if not _KO_REQUEST.search(line) and (not verb or _KO_TALK.search(line)):
        return DIALOGUE
    return EXPLANATION if verb else OTHER

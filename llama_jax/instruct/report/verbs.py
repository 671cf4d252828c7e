"""What instructions ask for: the verb that leads and the noun it is done to, as the papers chart them.

The papers take a parser; this is a look at the order of words, good enough for a chart: where no known verb leads, an
instruction is left out of it, as questions are there."""

import re

_VERBS_LISTED = """
abbreviate adapt add address adjust advise advocate agree alphabetize analyse analyze annotate answer apologize
appraise argue arrange articulate ask assemble assess assign assume brainstorm break bring build calculate
categorise categorize change characterise characterize chart check choose cite clarify classify coach collect
combine come comment compare compile complete compose compress compute concatenate conclude condense conduct confirm
connect consider construct continue contrast convert convince copy correct count craft create criticize critique
debate debug decide decode decompose deduce define delete deliver demonstrate derive describe design detect
determine develop devise diagnose differentiate discuss distinguish divide draft edit elaborate eliminate encode
enumerate estimate evaluate examine execute expand explain explore express extend extract fill find fix flag follow
forecast form formulate frame generate get give group guess guide help highlight hypothesize identify illustrate
imagine imitate implement improve include infer inform insert interpret invent investigate join judge justify keep
label lay lead learn limit list locate look make map mark match measure mention merge model modify name narrate
negotiate note number offer optimize order organise organize outline pair paraphrase parse perform personify
persuade pick place plan play point pose predict prepare present prioritise prioritize produce pronounce proofread
propose prove provide punctuate put quote rank rate read rearrange reason recall recast recite recognize recommend
reconstruct record reduce refer reflect reformat reformulate remove rename render reorder reorganise reorganize
repair repeat rephrase replace reply report represent request research resolve respond restate restore restructure
retell retrieve return reverse review revise reword rewrite rhyme role-play round scan schedule score search select
separate set share shorten show simplify simulate sketch solve sort specify speculate spell split spot state stress
structure study submit substitute subtract suggest summarise summarize support supply swap take teach tell test
think tidy trace train transcribe transform translate transpose trim try turn underline understand update use
validate verify visualise visualize weigh word work write
"""
_VERBS = frozenset(_VERBS_LISTED.split())
_SKIPPED_LISTED = """
me us it them you him her out up down off following below above given provided
"""
_SKIPPED = frozenset(_SKIPPED_LISTED.split())
_ENDS_LISTED = """
a an the this that these those my your our their its his some any each every all both one two three four five six
seven eight nine ten
"""
_ENDS = frozenset(_ENDS_LISTED.split())
_STOPS_LISTED = """
of for to in into on onto about with without from by as at that which who whose when where while if so such and or
but using based containing describing explaining between against after before because during through over under per
than then is are was were be can could should would will may must does do did has have not only how what why whether
involving including
"""
_STOPS = frozenset(_STOPS_LISTED.split())
_BEFORE_LISTED = """
please kindly now then first next finally carefully briefly just simply
"""
_BEFORE = frozenset(_BEFORE_LISTED.split())
_OPENERS = re.compile(
    r"^(?:(?:can|could|would|will) you|i (?:want|need|would like) you to|i'd like you to|you (?:are|have|need) to|"
    r"your (?:task|job) is to|let's|help me(?: to)?)\s+",
    re.IGNORECASE,
)
_CHINESE_VERBS_LISTED = """
写出 写 撰写 编写 改写 续写 重写 缩写 扩写 翻译 译成 压缩 编 列出 列举 解释 说明 描述 总结 概括 归纳 比较 对比
分析 判断 分类 计算 推荐 建议 提出 给出 提供 生成 创作 创建 设计 制定 规划 安排 修改 纠正 改正
润色 简化 回答 介绍 找出 提取 识别 选择 选出 排序 整理 转换 评价 评估 预测 猜 想象 模仿 讲 补充
完成 填写 命名 起草 定义 讨论 证明 推断 确定 指出 删除 检查 标注
"""
_CHINESE_VERB = re.compile("|".join(sorted(_CHINESE_VERBS_LISTED.split(), key=len, reverse=True)))
_MEASURE = re.compile(
    r"^(?:出|成)?(?:[一二两三四五六七八九十几\d]+|这|那|每|下面的?|以下的?|下列的?)?(?:[个首篇段句条种封份张则本道项件位名组类些])?"
)
_CHINESE_BREAK = re.compile(r"[，。！？；：、,.!?;:（）()“”\"\s]")
_HAN = re.compile("[\u4e00-\u9fff]")


def verb_and_noun(instruction: str) -> tuple[str, str] | None:
    """The leading verb and its object, in singular; None where there is no known verb or nothing it is done to."""
    if _HAN.match(instruction.strip()[:1]):
        return _chinese(instruction.strip())
    sentences = [sentence for sentence in re.split(r"[.!?;:\n]+\s*", instruction.strip()) if sentence]
    # A verb behind a comma, as in "Given a list, sort it", counts where none opens the sentence.
    for clause in (part for sentence in sentences for part in (sentence, *re.split(r",\s+", sentence)[1:])):
        words = re.findall(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*|\d+", _OPENERS.sub("", clause).lower())
        while words and words[0] in _BEFORE:
            words = words[1:]
        if words and words[0] in _VERBS:
            return _with_object(words[0], words[1:])
    return None


def _with_object(verb: str, words: list[str]) -> tuple[str, str] | None:
    phrase: list[str] = []
    for word in words:
        if word in _STOPS:
            # "a list of three fruits" is about fruits; "two of the words" too.
            if word == "of" and phrase and phrase[-1] in _ENDS:
                phrase = []
                continue
            break
        if word in _SKIPPED and all(before in _ENDS for before in phrase):
            continue
        if phrase and word in _ENDS and phrase[-1] not in _ENDS:
            break
        phrase.append(word)
    nouns = [word for word in phrase if word not in _ENDS and not word.isdigit()]
    return (verb, _singular(nouns[-1])) if nouns else None


def _singular(noun: str) -> str:
    if noun.endswith("ies") and len(noun) > 4:
        return f"{noun[:-3]}y"
    if noun.endswith(("ches", "shes", "xes", "sses", "zes")):
        return noun[:-2]
    if noun.endswith("s") and not noun.endswith(("ss", "us", "is", "news")) and len(noun) > 3:
        return noun[:-1]
    return noun


def _chinese(instruction: str) -> tuple[str, str] | None:
    found = _CHINESE_VERB.search(instruction)
    if found is None:
        return None
    rest = _CHINESE_BREAK.split(instruction[found.end() :], maxsplit=1)[0]
    noun = _MEASURE.sub("", rest.rpartition("的")[2] or rest)[-2:]
    return (found[0], noun) if noun else None

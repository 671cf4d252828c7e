"""What models are asked with, in English and in Chinese: the sentences, and how tasks are laid out between them.

The forms are the papers', the sentences our own; the demonstrations are the seed tasks at hand."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llama_jax.instruct.tasks import Instance, Task


@dataclass(frozen=True)
class Prompts:
    """The sentences of one language."""

    about: str
    """Names the domain."""
    series: str
    continue_series: str
    classify: str
    task: str
    question: str
    yes: str
    no: str
    answer_yes_or_no: str
    input_first: str
    output_first: str
    write_instances: str
    write_labels: str
    example: str
    input: str
    output: str
    label: str
    requirements: tuple[str, ...]
    alpaca_list: str
    continue_alpaca: str
    instruction: str
    nothing: str
    colon: str
    gap: str
    """Between a colon and what stands behind it on the line."""

    def header(self, sentence: str, domain: str | None) -> str:
        """A sentence, and one that names the domain if there is one."""
        return sentence if domain is None else f"{sentence} {self.about.format(domain=domain)}"

    def instructions(self, shown: Sequence[str], domain: str | None) -> str:
        """A numbered list that ends with the next number."""
        lines = [f"{number}. {_one_line(text)}" for number, text in enumerate(shown, 1)]
        return "\n".join([f"{self.header(self.series, domain)}{self.colon}", *lines, f"{len(shown) + 1}."])

    def classification(self, shown: Sequence[Task], instruction: str) -> str:
        """Solved questions whether a task is classification, and an open one."""
        answers = [(task.instruction, self.yes if task.is_classification else self.no) for task in shown]
        blocks = [
            f"{self.task}{self.colon}{self.gap}{_one_line(text)}\n{self.question}{self.gap}{answer}".rstrip()
            for text, answer in [*answers, (instruction, "")]
        ]
        return "\n\n".join([self.classify, *blocks])

    def instances(self, shown: Sequence[Task], instruction: str, domain: str | None) -> str:
        """Tasks with their instances, input first, and an open one."""
        blocks = [self._with_examples(task) for task in shown]
        return "\n\n".join([self.header(self.input_first, domain), *blocks, self._opening(instruction)])

    def labelled(self, shown: Sequence[Task], instruction: str, domain: str | None) -> str:
        """Classification tasks with their labels first, and an open one."""
        blocks = [
            "\n".join([self._opening(task.instruction), *(self._labelled(instance) for instance in task.instances)])
            for task in shown
        ]
        return "\n\n".join([self.header(self.output_first, domain), *blocks, self._opening(instruction)])

    def alpaca(self, shown: Sequence[Task], total: int, domain: str | None) -> str:
        """Requirements and a list of tasks that ends where the next one begins."""
        lines = [f"{number}. {line}" for number, line in enumerate(self.requirements, 1)]
        if domain is not None:
            lines.append(f"{len(lines) + 1}. {self.about.format(domain=domain)}")
        head, *rest = lines
        blocks = [
            f"###\n{number}. {self.instruction}{self.colon}{self.gap}{_one_line(task.instruction).rstrip(':：')}\n"
            f"{number}. {self.input}{self.colon}\n{task.instances[0].input or self.nothing}\n"
            f"{number}. {self.output}{self.colon}\n{task.instances[0].output}"
            for number, task in enumerate(shown, 1)
        ]
        opened = f"###\n{len(shown) + 1}. {self.instruction}{self.colon}"
        list_head = self.alpaca_list.format(total=total)
        text = "\n".join([head.partition(" ")[2].format(total=total), "", *_renumbered(rest), "", list_head])
        return "\n".join([text, *blocks, opened])

    def _opening(self, instruction: str) -> str:
        return f"{self.task}{self.colon}{self.gap}{_one_line(instruction)}"

    def _with_examples(self, task: Task) -> str:
        lines = [self._opening(task.instruction)]
        for number, instance in enumerate(task.instances, 1):
            lines.append(f"{self.example} {number}")
            lines += [f"{self.input}{self.colon}\n{instance.input}"] if instance.input else []
            lines.append(f"{self.output}{self.colon}\n{instance.output}")
        return "\n".join(lines)

    def _labelled(self, instance: Instance) -> str:
        return f"{self.label}{self.colon}{self.gap}{_one_line(instance.output)}\n{instance.input}".rstrip()


def _renumbered(lines: Sequence[str]) -> list[str]:
    return [f"{number}. {line.partition(' ')[2]}" for number, line in enumerate(lines, 1)]


def _one_line(text: str) -> str:
    return " ".join(text.split())


_ENGLISH = Prompts(
    about="Every task is about {domain}.",
    series="Here is a series of tasks, each different from all others",
    continue_series="Continue the list with new tasks of the same kind, one numbered line each, up to number 16. Write "
    "nothing else.",
    classify="Decide for each task whether it is classification: whether all right outputs come from a short list of "
    "labels that is known beforehand.",
    task="Task",
    question="Is it classification?",
    yes="Yes",
    no="No",
    answer_yes_or_no="Answer the last question with Yes or No alone.",
    input_first="Write examples for the tasks. A task that needs something to work on gets an input before each "
    "output; one that says everything itself has an output alone, and needs one example only.",
    output_first="Write an input for each of the labels that a classification task can have, the label first. Say "
    "what is to be classified in full.",
    write_instances="Write the examples of the last task, at most five, laid out as above. Write nothing else.",
    write_labels="Write the labels and inputs of the last task, laid out as above. Write nothing else.",
    example="Example",
    input="Input",
    output="Output",
    label="Class label",
    requirements=(
        "Write {total} tasks for an assistant that reads and writes text, to find out how well it follows "
        "instructions. They must meet these requirements:",
        "No verb should lead two instructions if another would do: the more kinds of verbs, the better.",
        "The manner should vary too: questions, orders, wishes, with and without a reason.",
        "So should the kind of work: open-ended writing, classification, editing, explaining, planning, reasoning and "
        "so on.",
        "An assistant of text must be able to do it: it sees no pictures, hears nothing, and cannot act, as by "
        "calling, waking or reminding somebody.",
        "The instructions are in English, one or two sentences long; a question will do as well as an order.",
        "Give an input where the instruction needs one: a realistic and specific one, not a placeholder, and rarely "
        "more than 100 words.",
        "Not every instruction needs one. Where general knowledge is asked for, write <noinput> in its place.",
        "The output is a fitting answer to instruction and input, of less than 100 words.",
    ),
    alpaca_list="List of {total} tasks:",
    continue_alpaca="Go on with the list from number {first} to number {total}, laid out as above, with ### before "
    "each task. Write nothing else.",
    instruction="Instruction",
    nothing="<noinput>",
    colon=":",
    gap=" ",
)

_CHINESE = Prompts(
    about="所有任务都与{domain}有关。",
    series="下面是一系列任务，每一个都与其他的不同",
    continue_series="请接着写出同类的新任务，每行一个并编号，一直写到第16个。不要写别的内容。",
    classify="判断每个任务是不是分类任务，也就是说，正确的输出是否都来自事先知道的少数几个标签。",
    task="任务",
    question="它是分类任务吗？",
    yes="是",
    no="否",
    answer_yes_or_no="只用“是”或“否”回答最后一个问题。",
    input_first="为任务写出示例。需要处理某些内容的任务，在每个输出之前给出输入；"
    "指令本身已经说明一切的任务只有输出，写一个示例即可。",
    output_first="为分类任务可能的每个标签写一个输入，标签写在前面。要分类的内容必须写完整。",
    write_instances="按照上面的格式写出最后一个任务的示例，最多五个。不要写别的内容。",
    write_labels="按照上面的格式写出最后一个任务的标签和输入。不要写别的内容。",
    example="示例",
    input="输入",
    output="输出",
    label="类别",
    requirements=(
        "请写出{total}个任务，用来检验一个读写文字的助手能否按照指令工作。要求如下：",
        "指令开头的动词尽量不重复，种类越多越好。",
        "说法也要多样：有疑问，有命令，有愿望，有的说明理由，有的不说。",
        "任务的种类要多样：自由写作、分类、修改、解释、计划、推理等等。",
        "必须是文字助手能够完成的：它看不见图像，听不见声音，也不能打电话、叫醒或者提醒别人。",
        "指令用中文书写，一到两句话，可以是命令，也可以是问题。",
        "需要输入的指令要给出输入：内容真实具体，不用占位符，一般不超过100字。",
        "不是每条指令都需要输入。如果问的是常识，就在输入处写<无输入>。",
        "输出是对指令和输入的恰当回答，不超过100字。",
    ),
    alpaca_list="{total}个任务的列表：",
    continue_alpaca="请按照上面的格式，从第{first}个接着写到第{total}个，每个任务之前写###。不要写别的内容。",
    instruction="指令",
    nothing="<无输入>",
    colon="：",
    gap="",
)

PROMPTS: dict[Literal["english", "chinese"], Prompts] = {"english": _ENGLISH, "chinese": _CHINESE}

"""Continuous batching: requests of any length join and leave between steps, over a fixed number of slots.

An engine belongs to one thread. Everything it does follows from the requests and their order, so that processes that
share a mesh may each run it alike. What runs on devices is in `programs.py`; knows token ids, not text."""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.core.arrays import Array, PyTree
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import platform
from llama_jax.core.placing import indivisible_rows, placed
from llama_jax.core.sharding import replicated, size_of
from llama_jax.inference import programs
from llama_jax.inference.compilations import compilations
from llama_jax.inference.config import SamplingConfig
from llama_jax.inference.programs import Chunk, Output
from llama_jax.inference.requests import Constraint, NewToken, Request, check_request
from llama_jax.inference.rows import WORTH_KEEPING, Job, Slot
from llama_jax.inference.sampling import Rules, rules_of
from llama_jax.model.llama import LanguageModel

__all__ = ["Constraint", "Engine", "NewToken", "Request"]

CHUNKS = {"cpu": (32, 128), "gpu": (32, 128, 512), "tpu": (32, 128, 512)}
"""Tokens of a prompt that one program reads."""
TOKENS_A_STEP = 1024
"""Of prompts, that one step reads at the most: a request can be cancelled only between two steps."""
_FINISH = {programs.GOES_ON: None, programs.STOP: "stop", programs.LENGTH: "length", programs.ERROR: "error"}


class _Pending(NamedTuple):
    """A step of decoding that devices work on."""

    output: Output
    jobs: list[tuple[int, Slot, Job]]
    """Row of the output, and whose it is."""


class Engine:
    """Answers requests with one model, on the mesh in use when it is made.

    Args:
        layers: parameters in the list layout (`layout.decoding_params`).
        slots: requests that are answered at a time; the mesh divides them.
        length: tokens of prompt and answer at the most; None: the model's context.
        cache_dtype: type of the cached keys and values; None: the model's compute type.
        row_counts: numbers of rows that a step may be compiled for, the last that of the slots; None: on CPU, which
            computes for each row, the powers of two, and elsewhere the slots alone, which costs hardly more.
        readers: prompts that one program reads side by side, in each part of the mesh: more than one where many are
            asked at a time.
    """

    def __init__(
        self,
        model: LanguageModel,
        layers: PyTree,
        *,
        slots: int,
        length: int | None = None,
        cache_dtype: Any = None,
        row_counts: Sequence[int] | None = None,
        readers: int = 1,
    ) -> None:
        self.model, self.slots, self.length = model, slots, length or model.config.context_length
        self.compilations = 0
        """Programs compiled, or taken from the cache of compiled ones, by what this engine did."""
        self.prompt_tokens_read = 0
        """Tokens of prompts that were read, rather than found in a slot."""
        self._layers, self._adapters = layers, programs.adapter_count(layers)
        self._mesh = jax.sharding.get_mesh()
        self._parts = size_of("batch")
        if problem := indivisible_rows(slots, self._parts):
            raise UserError(f"slots: {problem}")
        self._readers = readers * self._parts
        self._vocab_size = model.config.padded_vocab_size
        self._no_rules = rules_of(Request([0], SamplingConfig()), self._vocab_size)
        self._handles = itertools.count()
        self._clock = itertools.count(1)
        self._waiting: deque[Job] = deque()
        self._reading: list[Slot] = []
        self._beginning: list[Slot] = []
        self._pending: _Pending | None = None
        self._rows = [Slot(number) for number in range(slots)]
        self._chunks = chunks_of(self.length)
        self._row_counts = _row_counts(slots, self._parts) if row_counts is None else row_counts
        self._no_masks: dict[int, Array] = {}
        dtype = jnp.dtype(cache_dtype or model.compute.dtype)
        with self._at_work():
            self._state = programs.empty_slots(model, slots, self.length, dtype)

    @property
    def waiting(self) -> int:
        """Requests that have no slot yet."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Requests that have a slot."""
        return sum(slot.job is not None for slot in self._rows)

    def submit(self, request: Request) -> int:
        """Put a request into the queue.

        Returns:
            The handle that its tokens will bear.

        Raises:
            UserError: it can never be answered.
        """
        check_request(request, self.model.config.vocab_size, self.length, self._adapters)
        adapter = self._adapters if request.adapter is None else request.adapter
        job = Job(next(self._handles), request, adapter)
        self._waiting.append(job)
        return job.handle

    def cancel(self, handle: int) -> None:
        """Forget a request; its slot is free for the next step. Nothing more is given of it. A handle of a request that
        has ended does nothing."""
        self._waiting = deque(job for job in self._waiting if job.handle != handle)
        for slot in self._rows:
            if slot.job is not None and slot.job.handle == handle:
                with self._at_work():
                    self._state, sound = programs.stop(self._state, np.int32(slot.number))
                    if not sound:  # no token tells any more
                        self._forget(slot)
                slot.job = None
        self._reading = [slot for slot in self._reading if slot.job is not None]

    def step(self) -> list[NewToken]:
        """One turn: read a piece of the prompts that wait, have the next token of each answer computed, and give those
        of the turn before, whose successors devices meanwhile compute. May be empty while requests are active."""
        with self._at_work():
            self._read_prompts()
            if any(slot.job is not None and slot.job.request.constraint is not None for slot in self._rows):
                # What may come next depends on the token that came.
                found = self._taken()
                self._pending = self._decoded()
                return found
            following = self._decoded()
            found, self._pending = self._taken(), following
            if following is None:
                # Else prompts would pile up before the devices, where none can be cancelled any more.
                jax.block_until_ready(self._state.lengths)
            return found

    def run(self, requests: Sequence[Request]) -> list[list[NewToken]]:
        """Answer all of them to their ends."""
        handles = {self.submit(request): number for number, request in enumerate(requests)}
        answers: list[list[NewToken]] = [[] for _ in requests]
        while self.waiting or self.active:
            for token in self.step():
                if token.handle in handles:
                    answers[handles[token.handle]].append(token)
        return answers

    def replace_weights(self, layers: PyTree) -> None:
        """Go on with other parameters of the same shapes. No prompt that was read with the old ones is used again;
        answers under way go on from where they are."""
        self._layers = layers
        for slot in self._rows:
            slot.tokens = None
        for slot in self._reading:
            slot.read(0)

    def warm_up(self) -> None:
        """Compile every program there is, so that no request will wait for that. Changes no answer."""
        with self._at_work():
            self._run_all()
            self._run_all()  # where no mesh is in use, what programs give counts as placed, which fresh arrays are not
            jax.block_until_ready(self._state.lengths)

    def _run_all(self) -> None:
        nowhere = np.int32(self.slots)
        for size in self._chunks:
            self._state = programs.prefill(self.model, self._layers, self._state, self._chunk([], size))
        self._state = programs.copy_prompt(self._state, np.int32(0), nowhere, np.int32(0))
        self._state = programs.clear(self._state, nowhere)
        self._state, _ = programs.stop(self._state, nowhere)
        self._begin([])
        for count in self._row_counts:
            self._run_decode([], count)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        before = compilations()
        # The thread that owns an engine need not be the one that made it, so the mesh comes along.
        with nullcontext() if self._mesh.empty else jax.set_mesh(self._mesh):
            yield
        self.compilations += compilations() - before

    def _read_prompts(self) -> None:
        """Read a piece of the prompts that are to be read next; more, as long as more requests wait for that than
        answers would have to wait. Whoever has been read begins to answer."""
        self._read_pieces()
        for start in range(0, len(self._beginning), self._readers):
            self._begin(self._beginning[start : start + self._readers])
        self._beginning = []

    def _read_pieces(self) -> None:
        for _ in range(max(1, TOKENS_A_STEP // self._chunks[-1])):
            self._reading = self._reading or self._admitted()
            if not self._reading:
                return
            left = max(slot.job.unread for slot in self._reading if slot.job is not None)
            size = chunk_size(self._chunks, left)
            chunk = self._chunk(self._reading, size)
            self._state = programs.prefill(self.model, self._layers, self._state, chunk)
            self.prompt_tokens_read += int(chunk.counts.sum())
            for slot, start, count in zip(self._reading, chunk.starts, chunk.counts, strict=False):
                slot.read(int(start + count))
                if slot.job is not None and slot.job.is_read:
                    self._beginning.append(slot)
            self._reading = [slot for slot in self._reading if slot.job is not None and not slot.job.is_read]
            idle = self.slots - self.active
            if min(idle, self.waiting) + len(self._reading) <= self.active - len(self._reading):
                return

    def _admitted(self) -> list[Slot]:
        """Slots whose prompts are to be read, side by side."""
        admitted: list[Slot] = []
        while self._waiting and len(admitted) < self._readers:
            idle = [slot for slot in self._rows if slot.job is None]
            if not idle:
                break
            job = self._waiting[0]
            # A prompt so short is in no slot: each would be looked at in vain.
            rows = idle[:1] if len(job.prompt) <= WORTH_KEEPING else self._rows
            source = max(rows, key=lambda slot: slot.shared(job))
            if any(slot.promises(job) > source.shared(job) for slot in admitted):
                break  # what one of those will hold is worth waiting for
            target = max(idle, key=lambda slot: (slot.shared(job), -slot.used))
            if source.shared(job) > target.shared(job):
                target = min(idle, key=lambda slot: slot.used)
                number, length = np.int32(target.number), np.int32(source.shared(job))
                self._state = programs.copy_prompt(self._state, np.int32(source.number), number, length)
            target.take(self._waiting.popleft(), source.shared(job), next(self._clock))
            if job.is_read:
                self._beginning.append(target)
            else:
                admitted.append(target)
        return admitted

    def _chunk(self, slots: Sequence[Slot], size: int) -> Chunk:
        tokens = np.zeros((self._readers, size), np.int32)
        rows, starts, counts, adapters = np.zeros((4, self._readers), np.int32)
        rows[:] = self.slots
        for place, slot in enumerate(slots):
            assert slot.job is not None
            # Near the end of a slot, tokens are read again rather than padding written behind it.
            start = min(slot.job.read, self.length - size)
            piece = slot.job.prompt[start : min(start + size, len(slot.job.prompt) - 1)]
            tokens[place, : len(piece)] = piece
            rows[place], starts[place], counts[place] = slot.number, start, len(piece)
            adapters[place] = slot.job.adapter
        return Chunk(tokens, rows, starts, counts, adapters)

    def _begin(self, slots: Sequence[Slot]) -> None:
        tokens = np.zeros((self._readers, self.length), np.int32)
        rows, lengths, adapters = np.zeros((3, self._readers), np.int32)
        rows[:] = self.slots
        rules = [self._no_rules] * self._readers
        for place, slot in enumerate(slots):
            assert slot.job is not None
            job = slot.job
            tokens[place, : len(job.prompt)] = job.prompt
            rows[place], lengths[place], adapters[place] = slot.number, len(job.prompt), job.adapter
            rules[place] = rules_of(job.request, self._vocab_size)
        each: Rules = jax.tree.map(lambda *values: np.stack(values), *rules)
        self._state = programs.begin(self._state, rows, tokens, lengths, adapters, each)

    def _decoded(self) -> _Pending | None:
        """The next token of each answer under way, on its way."""
        jobs = [
            (slot, slot.job)
            for slot in self._rows
            if slot.job is not None and slot.job.is_read and not slot.job.is_asked
        ]
        if not jobs:
            return None
        count = next(count for count in self._row_counts if count >= len(jobs))
        for _, job in jobs:
            job.asked += 1
        output = self._run_decode(jobs, count)
        whole = count == self.slots
        return _Pending(output, [(slot.number if whole else row, slot, job) for row, (slot, job) in enumerate(jobs)])

    def _run_decode(self, jobs: Sequence[tuple[Slot, Job]], count: int) -> Output:
        whole = count == self.slots
        rows = np.full(count, self.slots, np.int32)
        rows[: len(jobs)] = [slot.number for slot, _ in jobs]
        held = {slot.number if whole else row: job.request.constraint for row, (slot, job) in enumerate(jobs)}
        masks = self._masks({row: constraint for row, constraint in held.items() if constraint is not None}, count)
        self._state, output = programs.decode(self.model, self._layers, self._state, None if whole else rows, masks)
        return output

    def _masks(self, held: dict[int, Constraint], count: int) -> Array:
        """What the rows that are held to something may take."""
        if not held and count in self._no_masks:
            return self._no_masks[count]
        masks = np.zeros((count, programs.mask_words(self.model)), np.uint32)
        for row, constraint in held.items():
            allowed = constraint.allowed()
            masks[row, : len(allowed)] = allowed
        on_devices = jnp.asarray(masks) if self._mesh.empty else placed(masks, replicated(self._mesh))
        return on_devices if held else self._no_masks.setdefault(count, on_devices)

    def _taken(self) -> list[NewToken]:
        """The tokens of the step that devices work on, once they are there."""
        if self._pending is None:
            return []
        output, jobs = self._pending
        ids, finish = np.asarray(output.ids), np.asarray(output.finish)
        if any(job.request.top_logprobs is not None for _, _, job in jobs):
            output = jax.tree.map(np.asarray, output)  # at once: each token asks for its row of them
        found = []
        for row, slot, job in jobs:
            if slot.job is not job:
                continue  # cancelled, or ended a token before
            token = NewToken(job.handle, int(ids[row]), _FINISH[int(finish[row])])
            if job.request.top_logprobs is not None and token.finish != "error":
                token = _with_logprobs(token, output, row, job.request.top_logprobs)
            found.append(token)
            self._take(slot, job, token)
        return found

    def _take(self, slot: Slot, job: Job, token: NewToken) -> None:
        if slot.tokens is not None:
            slot.tokens.append(token.id)
        if token.finish is None and job.request.constraint is not None:
            job.request.constraint.push(token.id)
        if token.finish == "error":
            self._forget(slot)
        if token.finish is not None:
            slot.job = None

    def _forget(self, slot: Slot) -> None:
        """Leave nothing of what a slot has read."""
        self._state = programs.clear(self._state, np.int32(slot.number))
        slot.tokens = None


def chunks_of(length: int) -> list[int]:
    """Numbers of tokens that a program may read at a time, for slots of so many, on the mesh in use."""
    return [size for size in CHUNKS[platform()] if size <= length] or [length]


def chunk_size(chunks: Sequence[int], left: int) -> int:
    """The one by which a program reads what is left of prompts: all of it, unless too much would be padding."""
    fitting = (size for size in chunks if left <= size <= max(2 * left, chunks[0]))
    return next(fitting, max((size for size in chunks if size <= left), default=chunks[0]))


def _row_counts(slots: int, parts: int) -> list[int]:
    if parts > 1 or platform() != "cpu":
        return [slots]
    return [1 << power for power in range(slots.bit_length()) if 1 << power < slots] + [slots]


def _with_logprobs(token: NewToken, output: Output, row: int, count: int) -> NewToken:
    raw, sampled = map(float, output.logprobs[row])
    top_ids, top_logprobs = (array[row, :count] for array in (output.top_ids, output.top_logprobs))
    top = tuple(zip(top_ids.tolist(), top_logprobs.tolist(), strict=True))
    return token._replace(logprob=raw, sampled_logprob=sampled, top=top)

"""A model that is asked one question at a time, in the form that training and scoring write.

The prompt is `Template`'s, the precision is what training takes on such a device, and an answer ends where scored
answers end; generation is plain `transformers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray_unlearn.config import UserError
from ray_unlearn.models.loading import load_config, load_model, load_stops, load_tokenizer
from ray_unlearn.models.marks import cut_at_stop, whole_text
from ray_unlearn.models.sizes import context_length
from ray_unlearn.models.templates import Choice, Template


@dataclass(frozen=True)
class Sampling:
    """How an answer is generated. temperature: 0 for the likeliest token at each place; else every token is drawn from
    the whole distribution at that temperature, with the seed set anew for every answer."""

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Answerer:
    """A loaded model with its tokenizer and the form in which it is asked."""

    name: str
    model: Any
    template: Template
    context: int
    """Tokens that the model can read."""
    device: str
    precision: str

    @classmethod
    def load(cls, name: str, choice: Choice) -> Answerer:
        """On the first GPU in bf16 where there is one, else on the CPU in fp32. Raises UserError."""
        import torch

        tokenizer, context = load_tokenizer(name), context_length(load_config(name))
        template = Template(tokenizer, choice, load_stops(name))
        device, precision = ("cuda", "bf16") if torch.cuda.is_available() else ("cpu", "fp32")
        try:
            model = load_model(name, precision, device).eval()
        except torch.OutOfMemoryError:
            raise UserError(f"{name}: does not fit this GPU. Free it, or hide it with CUDA_VISIBLE_DEVICES=") from None
        return cls(name, model, template, context, device, precision)

    def answer(self, question: str, sampling: Sampling) -> str:
        """Raises UserError where the question leaves no room for an answer."""
        import torch

        tokenizer = self.template.tokenizer
        prompt = self.template.encode_prompt([{"role": "user", "content": question}], "the question")
        room = min(sampling.max_new_tokens, self.context - len(prompt))
        if room < 1:
            raise UserError(f"the question has {len(prompt)} tokens, and {self.name} reads {self.context}. Shorten it")
        stops = self.template.stops
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        chosen: dict[str, Any] = {"do_sample": False}
        if sampling.temperature:
            torch.manual_seed(sampling.seed)
            chosen = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
        tokens = torch.tensor([prompt], device=self.device)
        with torch.no_grad():
            output = self.model.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=room,
                pad_token_id=pad,
                **({"eos_token_id": list(stops)} if stops else {}),
                **chosen,
            )
        answer = cut_at_stop(output[0, len(prompt) :].tolist(), stops)
        return whole_text(tokenizer.decode(answer, skip_special_tokens=True)).strip()

"""A small server for a trained model: fill-mask and classification, requests batched as they come.

    pip install starlette uvicorn
    python examples/serve.py outputs/<run> --port 8000
    curl localhost:8000/fill-mask -d '{"text": "The capital of France is <mask>."}'

Requests that arrive while a batch runs form the next one, padded to its longest; padding costs nothing in int8, whose
encoder drops it. Every answer says how long it waited and ran; /latency gives the percentiles, and they are printed at
the end. A run of pretraining answers /fill-mask; a fine-tuned classifier's folder answers /classify.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

try:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route
except ImportError as error:
    sys.exit(f"error: this example needs starlette and uvicorn: pip install starlette uvicorn ({error})")

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lookupffn import LookupRobertaForMaskedLM, LookupRobertaForSequenceClassification, UserError
from lookupffn.models.loading import load_model, load_tokenizer
from lookupffn.runs.model_source import find_model
from lookupffn.storage import read_json

logger = logging.getLogger(__name__)

_KEPT = 10_000  # requests whose latency is remembered
_MOST_TEXT = 100_000  # characters


class Batcher:
    """Runs waiting requests together on one thread."""

    def __init__(self, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, most: int) -> None:
        self.model, self.tokenizer, self.most = model, tokenizer, most
        self.length = model.config.max_position_embeddings - (model.config.pad_token_id or 0) - 1
        self.queue: asyncio.Queue[tuple[str, float, asyncio.Future]] = asyncio.Queue()
        self.milliseconds: deque[float] = deque(maxlen=_KEPT)

    async def ask(self, text: str) -> dict[str, Any]:
        """The answer to one text."""
        future = asyncio.get_running_loop().create_future()
        started = time.perf_counter()
        await self.queue.put((text, started, future))
        answer = await future
        answer["ms"] = (time.perf_counter() - started) * 1e3
        self.milliseconds.append(answer["ms"])
        return answer

    async def run(self) -> None:
        """For ever: whatever waits is the next batch."""
        while True:
            waiting = [await self.queue.get()]
            while len(waiting) < self.most and not self.queue.empty():
                waiting.append(self.queue.get_nowait())
            try:
                answers = await asyncio.to_thread(self.answers, [text for text, _, _ in waiting])
            except Exception as error:  # one bad batch must not end the server
                logger.exception("a batch failed")
                answers = [error] * len(waiting)
            for (_, _, future), answer in zip(waiting, answers, strict=True):
                if future.cancelled():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer | {"batch": len(waiting)})

    @torch.inference_mode()
    def answers(self, texts: list[str]) -> list[dict[str, Any]]:
        """Of a batch of texts."""
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=self.length, return_tensors="pt")
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if isinstance(self.model, LookupRobertaForSequenceClassification):
            shares = self.model(ids, attention_mask=mask).logits.softmax(-1)
            names = self.model.config.id2label
            return [{names[i]: share for i, share in enumerate(row)} for row in shares.tolist()]
        hidden = self.model.base_model(ids, attention_mask=mask).last_hidden_state
        masked = ids == self.tokenizer.mask_token_id
        shares, found = self.model.lm_head(hidden[masked]).softmax(-1).topk(5)  # the head at masked positions only
        words = iter([[self.tokenizer.decode([t]) for t in row] for row in found.tolist()])
        shares = iter(shares.tolist())
        return [{"masks": [dict(zip(next(words), next(shares), strict=True)) for _ in range(n)]} for n in masked.sum(1)]

    def percentiles(self) -> dict[str, float]:
        """Of the latency in milliseconds, waiting included."""
        if not self.milliseconds:
            return {"requests": 0}
        values = np.percentile(self.milliseconds, [50, 95, 99])
        return {"requests": len(self.milliseconds)} | dict(zip(("ms_50", "ms_95", "ms_99"), values, strict=True))


def application(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, most: int = 32) -> Starlette:
    """The server. ``model`` is optimised or not; ``most`` requests a batch."""
    batcher = Batcher(model, tokenizer, most)
    classifies = isinstance(model, LookupRobertaForSequenceClassification)

    async def answer(request: Request) -> JSONResponse:
        try:
            text = json.loads(await request.body())["text"]
        except (ValueError, KeyError, TypeError):
            return JSONResponse({"error": 'the body must be JSON such as {"text": "..."}'}, 400)
        if not isinstance(text, str) or len(text) > _MOST_TEXT:
            return JSONResponse({"error": f"text must be a string of at most {_MOST_TEXT} characters"}, 400)
        if not classifies and tokenizer.mask_token not in text:
            return JSONResponse({"error": f"text has no {tokenizer.mask_token}"}, 400)
        return JSONResponse(await batcher.ask(text))

    async def latency(_: Request) -> JSONResponse:
        return JSONResponse(batcher.percentiles())

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()
        logger.info("latency: %s", json.dumps(batcher.percentiles()))

    path = "/classify" if classifies else "/fill-mask"
    routes = [Route(path, answer, methods=["POST"]), Route("/latency", latency)]
    return Starlette(routes=routes, lifespan=lifespan)


def main(arguments: list[str] | None = None) -> None:
    """Load, optimise, serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a run folder or model folder")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "int8"), default="int8")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=32, help="requests a batch at most")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        import uvicorn

        folder = find_model(args.model).folder
        architectures = read_json(folder / "config.json").get("architectures") or [""]
        classifier = "SequenceClassification" in architectures[0]
        cls = LookupRobertaForSequenceClassification if classifier else LookupRobertaForMaskedLM
        model = load_model(folder, cls).optimize_for_inference(args.precision)
        uvicorn.run(application(model, load_tokenizer(folder), args.batch), host=args.host, port=args.port)
    except UserError as error:
        sys.exit(f"error: {error}")
    except ImportError as error:
        sys.exit(f"error: this needs starlette and uvicorn ({error})")


if __name__ == "__main__":
    main()

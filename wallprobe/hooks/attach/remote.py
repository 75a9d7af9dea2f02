"""Interchange through nnsight: one trace a patch, on this machine, on NDIF's path simulated here, or with a remote's model.

nnsight is an extra (`wallprobe[remote]`) and patches torch when it is imported, so it is imported when a backend is made and not
before. The traced blocks name nothing of wallprobe's: a remote machine has torch and nnsight, not this package.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.models.guard import reading

Point = tuple[str, bool]  # a module's path, and whether the site is what it is given (True) or what it gives
BACKENDS = ("hooks", "nnsight")
REMOTES = ("none", "local")


def check(backend: str, remote: str = "none") -> None:
    """Refuse a backend that is none, or whose package is not installed.

    Raises:
        ConfigError: in both cases.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"--backend {backend} is none of {', '.join(BACKENDS)}")
    if remote not in REMOTES:
        raise ConfigError(f"--remote {remote} is none of {', '.join(REMOTES)}")
    if remote != "none" and backend != "nnsight":
        raise ConfigError(f"--remote {remote} goes through nnsight; add --backend nnsight")
    if backend == "nnsight" and importlib.util.find_spec("nnsight") is None:
        asked = f"--remote {remote}" if remote != "none" else "--backend nnsight"
        raise ConfigError(f"{asked} needs nnsight, which is not installed: pip install 'wallprobe[remote]'")


class Tracer:
    """A module under nnsight, its sites named by their modules' paths.

    Args:
        name: the model's, for errors.
        module: the model.
        tokenizer: of a Hugging Face model; None for a run's.
        remote: "none", or "local": the trace is serialised as for NDIF, read back with this package's modules hidden, and run here.
    """

    def __init__(self, name: str, module: Any, tokenizer: Any = None, remote: str = "none") -> None:
        check("nnsight", remote)
        from nnsight import NNsight, TransformersModel

        self._name, self._module = name, module
        self._options = {} if remote == "none" else {"remote": remote}
        if tokenizer is None:
            if remote != "none":
                raise ConfigError(f"--remote {remote} is for language models: a remote machine does not have the run {name}")
            self._wrapped: Any = NNsight(module)
        else:
            with reading(name):  # it makes a pipeline, which could look for more than the model and the tokenizer it is given
                self._wrapped = TransformersModel(module, tokenizer=tokenizer, task="text-generation")

    def envoy(self, path: str) -> Any:
        """nnsight's handle of a module.

        Raises:
            InstrumentError: if there is none of that name.
        """
        if path not in dict(self._module.named_modules()):
            raise InstrumentError(f"{self._name} has no module {path}; its blocks are laid out differently")
        found = self._wrapped
        for part in path.split("."):
            found = found[int(part)] if part.isdigit() else getattr(found, part)
        return found

    def look(
        self, tokens: Int[Tensor, "pair index"], at: Sequence[Point], indices: Sequence[Sequence[int]]
    ) -> tuple[list[Float[Tensor, "pair _ _"]], Float[Tensor, "pair vocab"]]:
        """What stands at points, each at its own indices, and the logits at the last index.

        Args:
            tokens: token ids.
            at: points, in the order in which the model computes them.
            indices: for each point those to keep.
        """
        from nnsight import save

        handles = [(self.envoy(path), given, list(kept)) for (path, given), kept in zip(at, indices, strict=True)]
        wrapped = self._wrapped
        with torch.no_grad(), wrapped.trace(tokens, **self._options):
            found = save([])
            for handle, given, kept in handles:
                seen = handle.input if given else handle.output
                first = seen[0] if isinstance(seen, tuple) else seen
                found.append(first[:, kept].detach().flatten(2))
            whole = wrapped.output
            logits = save((whole if isinstance(whole, torch.Tensor) else whole.logits)[:, -1].detach())
        return list(found), logits

    def inner_products(
        self, tokens: Int[Tensor, "batch index"], blocks: Sequence[tuple[str, str, str]], forms: Float[Tensor, "product form"]
    ) -> tuple[Float[Tensor, "layer batch index form"], float]:
        """Sums of the inner products of each block's six vectors: all that leaves the machine that runs the model.

        Args:
            tokens: token ids.
            blocks: paths of each block, its attention and its MLP, in order.
            forms: which sums of the 36 products of x, what attention is given, A, what the MLP is given, M and x'.

        Returns:
            The sums for each token, in fp64; and by how much of its norm each block's input differs at most from the output of the
            block before.
        """
        from nnsight import save

        wrapped, weights = self._wrapped, forms.double()
        handles = [(self.envoy(block), self.envoy(attention), self.envoy(mlp)) for block, attention, mlp in blocks]
        with torch.no_grad(), wrapped.trace(tokens, **self._options):
            found, seams = save([]), save([])
            last = None
            for block, attention, mlp in handles:
                parts = [block.input, attention.input]
                out = attention.output
                parts.append(out[0] if isinstance(out, tuple) else out)
                parts.append(mlp.input)
                parts.append(mlp.output)
                post = block.output
                parts.append(post[0] if isinstance(post, tuple) else post)
                if last is not None:
                    seams.append(((parts[0] - last).norm() / last.norm()).detach().cpu())
                last = parts[-1]
                vectors = torch.stack([part.detach() for part in parts], -2).cpu().double()
                found.append((vectors @ vectors.mT).flatten(-2) @ weights)
        return torch.stack(list(found)), max((float(seam) for seam in seams), default=0.0)

    def patch(
        self, tokens: Int[Tensor, "pair index"], point: Point, index: int, value: Float[Tensor, "pair width"]
    ) -> tuple[Float[Tensor, "pair vocab"], float]:
        """Logits at the last index with one vector a row put at a point, and the largest change there.

        Raises:
            InstrumentError: if the module is not called exactly once.
        """
        from nnsight import save

        path, given = point
        handle, wrapped, calls = self.envoy(path), self._wrapped, []
        counter = self._module.get_submodule(path).register_forward_hook(lambda *_: calls.append(path))
        try:
            with torch.no_grad(), wrapped.trace(tokens, **self._options):
                seen = handle.input if given else handle.output
                first = (seen[0] if isinstance(seen, tuple) else seen).clone()
                there = first[:, index]
                change = save((value.to(there).view(there.shape) - there).abs().max().detach())
                first[:, index] = value.to(there).view(there.shape)
                if given:
                    handle.input = first
                elif isinstance(seen, tuple):
                    handle.output = (first, *seen[1:])
                else:
                    handle.output = first
                whole = wrapped.output
                logits = save((whole if isinstance(whole, torch.Tensor) else whole.logits)[:, -1].detach())
        finally:
            counter.remove()
        if len(calls) != 1:
            raise InstrumentError(f"{path} of {self._name} was called {len(calls)} times in one trace; expected once")
        return logits, float(change)

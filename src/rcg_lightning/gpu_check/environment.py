"""What is installed, and whether the device can do what this project relies on."""

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from rcg_lightning.bench.report import LIBRARIES
from rcg_lightning.gpu_check.parts import Trial
from rcg_lightning.gpu_check.results import Finding
from rcg_lightning.gpu_check.target import Target
from rcg_lightning.trainer import default_precision

OPTIONAL = ("diffusers", "torch_fidelity", "triton")


@dataclass(frozen=True)
class Environment:
    """Versions, flags and abilities."""

    target: Target

    def trials(self) -> Iterable[Trial]:
        """Return the checks."""
        checks: dict[str, Callable[[], Iterable[Finding]]] = {
            "versions": self.versions,
            "every class that a config may name": self.classes,
            "default precision": self.default_precision,
            "bf16 matmul": self.matmul,
            "attention": self.attention,
            "torch.compile": self.compile,
        }
        return [Trial(name, run) for name, run in checks.items()]

    def versions(self) -> list[Finding]:
        """List libraries, card and flags."""
        found = {library: version(library) for library in LIBRARIES}
        for module in OPTIONAL:
            found[module] = "installed" if importlib.util.find_spec(module) else "missing"
        found |= {"card": self.target.card, "driver": self.target.driver}
        found["CUDA and cuDNN"] = f"{torch.version.cuda}, {torch.backends.cudnn.version()}"
        return [Finding(name, value) for name, value in found.items()]

    def classes(self) -> list[Finding]:
        """Import every module."""
        importlib.import_module("rcg_lightning.class_modules")
        return [Finding("every class that a config may name", "imported", passed=True)]

    def default_precision(self) -> list[Finding]:
        """Check that training takes bf16 on a card that has it."""
        chosen, expected = default_precision(self.target.accelerator), "bf16-mixed" if self.target.on_gpu else "32-true"
        return [Finding("default precision of the trainer", chosen, expected, chosen == expected)]

    def matmul(self) -> list[Finding]:
        """Multiply matrices of ones."""
        ones = torch.ones(256, 256, device=self.target.device, dtype=torch.bfloat16)
        right = bool((ones @ ones == 256).all())
        return [Finding("bf16 matmul", "right" if right else "wrong", "exact", right)]

    def attention(self) -> list[Finding]:
        """Compute flash attention forward and backward against explicit attention."""
        q = torch.randn(2, 4, 64, 32, device=self.target.device, dtype=torch.bfloat16, requires_grad=True)
        results = []
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
            with sdpa_kernel(backend):
                out = F.scaled_dot_product_attention(q, q, q)
            (gradient,) = torch.autograd.grad(out.float().square().sum(), q)
            results.append(torch.cat([out.flatten(), gradient.flatten()]).float())
        worst = ((results[0] - results[1]).norm() / results[1].norm()).item()
        return [Finding("flash attention against explicit attention, bf16", f"{worst:.1e}", "2e-2", worst <= 2e-2)]

    def compile(self) -> list[Finding]:
        """Compile a function and compare; a rehearsal doesn't generate code, which takes a compiler of C++."""

        def function(x: torch.Tensor) -> torch.Tensor:
            return F.silu(x) * x.sin() + 1

        x = torch.linspace(-3, 3, 1000, device=self.target.device)
        compiled = torch.compile(function, backend="eager" if self.target.rehearsal else "inductor")
        worst = (compiled(x) - function(x)).abs().max().item()
        return [Finding("torch.compile", f"{worst:.1e}", "1e-5", worst <= 1e-5)]

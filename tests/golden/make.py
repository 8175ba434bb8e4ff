#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the golden files beside this script: make.py ORACLE_DIR (needs torch, numpy, safetensors). See README.md."""
import itertools
import json
import math
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
sys.path.insert(0, sys.argv[1])
import model as reference  # noqa: E402
from model import Options, gradients, losses  # noqa: E402
from oracle import PRESETS, load_model, random_tokens, random_weights, read_config, save_model  # noqa: E402
import training  # noqa: E402

ROWS, SEQ, VOCAB, STEPS = 8, 24, 131, 20
TRAIN_ROWS, MARGIN, CLAMP_MARGIN = 640, 1e-5, 1e-6
MODELS = ["tiny-arctic", "tiny-arctic-freq2", "tiny-mixtral", "tiny-apus", "tiny-dbrx", "tiny-grok", "tiny-llama"]
SERIAL = ["tiny-mixtral", "tiny-apus", "tiny-dbrx", "tiny-grok"]  # the experts read what attention made
KINDS = ["switch", "megablocks", "hf", "arctic", "deepspeed"]
SCOPES = ["sequence", "micro_batch", "global_batch"]
LOSSES = dict(aux_coef=0.01, z_loss=0.001)
# At the usual settings tiny-grok's training turns rounding into another run: the reference in float32 leaves the one in float64 by
# more than 1e-3 in the loss within 20 steps. So its learning rate is lower, and epsilon keeps Adam from amplifying gradients near 0.
CALM = dict(lr=1e-3, eps=1e-5)
CAPACITY = dict(LOSSES, capacity_factor=1.0, aux_kind="deepspeed", aux_scope="micro_batch")


def write_tokens():
    """tokens.npy: rows that overlap by one token in a text of 8·24 + 1 tokens; text.bin, .idx: that text as a shard."""
    text = random_tokens(VOCAB, 1, ROWS * SEQ, 0, True)[0]
    np.save(HERE / "tokens.npy", np.stack([text[i * SEQ:(i + 1) * SEQ + 1] for i in range(ROWS)]))
    np.save(HERE / "train_tokens.npy", random_tokens(VOCAB, TRAIN_ROWS, SEQ, 1, True))
    (HERE / "text.bin").write_bytes(text.astype("<u2").tobytes())
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 1, 2) + struct.pack("<i", len(text)) + struct.pack("<3q", 0, 0, 1)
    (HERE / "text.idx").write_bytes(index)


def floe_settings(o):
    return {"capacity_factor": o.capacity_factor, "min_capacity": o.min_capacity, "drop_policy": o.capacity_policy,
            "aux_kind": o.aux_kind, "aux_scope": o.aux_scope, "aux_coef": o.aux_coef, "z_coef": o.z_loss}


def micro_batches(o):
    """How many micro-batches the step must have for the numbers to hold; 0: any number."""
    return o.ranks if o.capacity_factor > 0 or (o.aux_coef and o.aux_scope == "micro_batch") else 0


def number(x):
    return float(f"{float(x.detach() if torch.is_tensor(x) else x):.13g}")


def gradient_cases():
    """(name, model, options, whether every gradient is kept whole)"""
    for model in MODELS:
        yield "plain", model, Options(), model in ("tiny-arctic-freq2", "tiny-llama")
        if model == "tiny-llama":
            continue
        for kind, scope in itertools.product(KINDS, SCOPES):
            ranks = 2 if scope == "micro_batch" else 1
            full = model != "tiny-arctic-freq2" and (kind, scope) == ("switch", "sequence")
            yield f"{kind}-{scope}", model, Options(ranks, aux_kind=kind, aux_scope=scope, **LOSSES), full
        yield "switch-micro_batch-whole", model, Options(1, aux_kind="switch", aux_scope="micro_batch", **LOSSES), False
        for policy, ranks in itertools.product(["position", "probs"], [1, 2]):
            options = Options(ranks, capacity_policy=policy, **CAPACITY)
            yield f"capacity-{policy}-{ranks}", model, options, (model, policy, ranks) == ("tiny-arctic", "position", 2)
        yield "capacity-rounds-up-2", model, Options(2, **CAPACITY | dict(capacity_factor=0.9)), False
        yield "capacity-min-2", model, Options(2, **CAPACITY | dict(capacity_factor=0.25, min_capacity=17)), False


def parts(c, name, gradient):
    """The pieces of a tensor that are weights of their own in floe, by name: DBRX keeps q, k and v, and all experts, in one."""
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    if name.endswith("Wqkv.weight"):
        sizes = [q, kv, kv]
    elif ".experts.mlp." in name:
        sizes = [len(gradient) // c.experts] * c.experts
    else:
        return {name: gradient}
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return {f"{name}@{start}": piece for start, piece in zip(starts, gradient.split(sizes))}


def projection(gradient):
    """The sum of a tensor's entries with signs that depend on their index: a difference of any direction shows, by about its 2-norm."""
    x = np.arange(gradient.numel(), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ x >> np.uint64(32)) * np.uint64(0xD6E8FEB86659FD93)
    return (gradient.reshape(-1).numpy() * np.where(x >> np.uint64(63), -1.0, 1.0)).sum()


def write_gradients():
    cases, logprobs = [], []
    tokens = torch.from_numpy(np.load(HERE / "tokens.npy").astype(np.int64))
    for name, model, o, full in gradient_cases():
        _, c, weights, _ = load_model(HERE / model, torch.float64)
        loss = losses(c, weights, tokens, o)
        grads = gradients(loss, weights)
        case = dict(name=f"{model}-{name}", model=model, micro_batches=micro_batches(o), router=floe_settings(o))
        case |= {key: number(getattr(loss, key)) for key in ("ce", "aux", "z")}
        case["dropped"] = sum(int((~r.kept).sum()) for r in loss.routes if r is not None)
        if full:
            case["gradients"] = f"grad-{model}-{name}.safetensors"
            save_file({key: g.float().contiguous() for key, g in grads.items()}, HERE / case["gradients"])
        pieces = [item for key, g in grads.items() for item in parts(c, key, g).items()]
        case["norms"] = {key: [number(g.norm()), number(projection(g))] for key, g in pieces}
        cases.append(case)
        if name == "plain":
            np.savetxt(HERE / f"text-{model}.txt", loss.logprobs.detach().numpy().reshape(-1), fmt="%.9f")
        logprobs.append(loss.logprobs.detach().numpy())
    np.save(HERE / "logprobs.npy", np.stack(logprobs))
    return cases


def trajectory_cases():
    """(name, model, options, what differs from the usual optimizer settings)"""
    for kind, scope in itertools.product(KINDS, SCOPES):
        ranks = 2 if scope == "micro_batch" else 1
        yield f"{kind}-{scope}", "tiny-arctic", Options(ranks, aux_kind=kind, aux_scope=scope, **LOSSES), {}
    for policy, ranks in ("position", 1), ("position", 2), ("probs", 2):
        yield f"capacity-{policy}-{ranks}", "tiny-arctic", Options(ranks, capacity_policy=policy, **CAPACITY), {}
    bias = dict(bias_update_rate=0.01)
    yield "bias", "tiny-arctic", Options(z_loss=0.001), bias
    switch, wsd = Options(aux_scope="sequence", **LOSSES), dict(schedule="wsd", decay_steps=5)
    yield "wsd", "tiny-arctic", switch, wsd
    yield "constant", "tiny-arctic", switch, dict(schedule="constant", clip=0.0, decay="matrices+embeddings")
    yield "switch-sequence", "tiny-arctic-freq2", switch, {}
    yield "deepspeed-micro_batch", "tiny-arctic-freq2", Options(2, aux_kind="deepspeed", **LOSSES), {}
    yield "hf-global_batch", "tiny-arctic-freq2", Options(aux_kind="hf", aux_scope="global_batch", **LOSSES), {}
    yield "capacity-position-2", "tiny-arctic-freq2", Options(2, **CAPACITY), wsd
    yield "bias", "tiny-arctic-freq2", switch, bias
    constant = dict(schedule="constant", clip=0.0, decay="matrices+embeddings")
    for model in SERIAL:
        usual = CALM if model == "tiny-grok" else {}
        for i, kind in enumerate(KINDS):
            scope = SCOPES[i % 3]
            ranks = 2 if scope == "micro_batch" else 1
            yield f"{kind}-{scope}", model, Options(ranks, aux_kind=kind, aux_scope=scope, **LOSSES), usual
        for policy in "position", "probs":
            yield f"capacity-{policy}-2", model, Options(2, capacity_policy=policy, **CAPACITY), usual
        yield "bias", model, Options(z_loss=0.001), usual | bias
        yield "wsd", model, switch, usual | wsd
        yield "constant", model, switch, usual | constant
    for name, changes in ("cosine", {}), ("wsd", wsd), ("constant", constant):
        yield name, "tiny-llama", Options(), changes


clamp_gaps, attention = [], reference.attention


def watched_attention(c, w, x, tables):
    """How near the bound q, k and v come: beyond it they have no gradient."""
    if c.clip_qkv is not None:
        clamp_gaps.extend(((x @ m.T).detach().abs() - c.clip_qkv).abs().min() for m in (w.q, w.k, w.v))
    return attention(c, w, x, tables)


reference.attention = watched_attention


def decision_margin(routes, biases, o):
    """The smallest gap in a decision that rounding could turn: who is chosen, who is first, who finds a place; what is clamped."""
    gaps = [torch.tensor([math.inf])] + [gap[None] * (MARGIN / CLAMP_MARGIN) for gap in clamp_gaps]
    for layer, (r, bias) in enumerate(zip(routes, biases)):
        if r is None:
            continue
        k = r.choice.shape[1]
        first_matters = (o.aux_kind == "deepspeed" and o.aux_coef and k <= 2
                         or o.capacity_factor > 0 and o.capacity_policy == "position")
        ranked = (r.probs.detach() + bias).sort(-1, descending=True).values
        gaps += [ranked[:, k - 1] - ranked[:, k]] + [ranked[:, j] - ranked[:, j + 1] for j in range(k - 1) if first_matters]
        if o.capacity_factor > 0 and o.capacity_policy == "probs":
            chosen, T = r.probs.detach().gather(1, r.choice), len(r.choice) // o.ranks
            for choice, kept, p in zip(r.choice.split(T), r.kept.split(T), chosen.split(T)):
                for e in range(r.probs.shape[1]):
                    gap = (p[(choice == e) & kept][:, None] - p[(choice == e) & ~kept]).reshape(-1)
                    # Layer 0 reads embeddings: equal tokens have equal probabilities in any arithmetic.
                    gaps.append(gap[gap > 0] if layer == 0 else gap)
    return torch.cat(gaps).min().item()


def run_training(model, options, o, tokens, least):
    """The figures of each step, and the smallest margin in any of them; ends early where that falls below `least`."""
    _, c, weights, _ = load_model(HERE / model, torch.float64)
    bias = torch.zeros(c.layers, c.experts, dtype=torch.float64) if o.bias_update_rate else None
    steps, margins = [], []

    def watched(*arguments):
        clamp_gaps.clear()
        loss = losses(*arguments)
        margins.append(decision_margin(loss.routes, [0.0] * c.layers if bias is None else bias, options))
        return loss

    training.losses = watched
    for figures in training.train(c, weights, tokens, o, options, bias):
        steps.append(figures)
        if min(margins) <= least:
            break
    return steps, min(margins)


def write_trajectories():
    cases = []
    tokens = torch.from_numpy(np.load(HERE / "train_tokens.npy").astype(np.int64))
    for name, model, options, changes in trajectory_cases():
        o = SimpleNamespace(batch=ROWS, steps=STEPS, lr=3e-3, warmup=2, schedule="cosine", total_steps=STEPS, decay_steps=0,
                            final_fraction=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, decay="matrices", clip=1.0,
                            bias_update_rate=0.0)
        vars(o).update(changes)
        best = 0.0
        for first in sorted(range(TRAIN_ROWS - STEPS * ROWS + 1), key=lambda row: row % ROWS):
            steps, margin = run_training(model, options, o, tokens[first:], best)
            if margin > best:
                best, first_row, chosen = margin, first, steps
            if best > MARGIN:
                break
        print(f"{model} {name}: rows from {first_row}, margin {best:.1e}", flush=True)
        case = dict(name=f"{model}-{name}", model=model, micro_batches=micro_batches(options), first_row=first_row)
        case["router"] = floe_settings(options) | {"bias_rate": o.bias_update_rate}
        case["optim"] = {"schedule": o.schedule, "lr": o.lr, "final": o.final_fraction, "warmup": o.warmup,
                         "decay": o.decay_steps, "beta1": o.betas[0], "beta2": o.betas[1], "eps": o.eps,
                         "weight_decay": o.weight_decay, "decay_embeddings": o.decay != "matrices", "clip": o.clip}
        case |= {key: [number(s[key]) for s in chosen] for key in ("loss", "aux", "z", "gnorm", "lr", "dropped")}
        cases.append(case)
    return cases


def main():
    torch.set_num_threads(1)
    for model in MODELS:
        hf = json.loads(PRESETS[model].read_text())
        save_model(HERE / model, hf, random_weights(read_config(hf), 0), "float32")
    write_tokens()
    parts = {"gradients": write_gradients(), "trajectories": write_trajectories()}
    lines = [f' "{part}": [\n  ' + ",\n  ".join(map(json.dumps, cases)) + "\n ]" for part, cases in parts.items()]
    (HERE / "cases.json").write_text(f'{{"sequences": {ROWS}, "seq_len": {SEQ}, "steps": {STEPS},\n' + ",\n".join(lines) + "\n}\n")


main()

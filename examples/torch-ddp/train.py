#!/usr/bin/python3
"""Trains a small model with PyTorch's DistributedDataParallel under torchrun.

The data are made, the same everywhere; every rank takes its part of each batch,
so that a gang of any size computes the same steps, but for rounding. The gang's first
task saves a checkpoint every few steps, and a run goes on from the newest there is: the
region's (RESUME_FROM), or that of a directory that all ranks share (CHECKPOINT_DIR).
"""
import argparse
import json
import os
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

BATCH, SAMPLES, INPUTS = 64, 4096, 16


def data():
    """Returns all samples: a function of two layers, with noise."""
    g = torch.Generator().manual_seed(7)
    x = torch.randn(SAMPLES, INPUTS, generator=g)
    teacher = torch.tanh(x @ torch.randn(INPUTS, 8, generator=g)) @ torch.randn(8, 1, generator=g)
    return x, teacher + 0.1 * torch.randn(SAMPLES, 1, generator=g)


def checkpoint_dir():
    return os.environ.get("GPUAI_CHECKPOINT_DIR") or os.environ["CHECKPOINT_DIR"]


def newest():
    """Returns the newest checkpoint's file, or None.

    A region with a checkpoint store hands it out as RESUME_FROM, that of rank 0 to all ranks. Without one
    the ranks look into the directory that they share.
    """
    places = [os.environ.get("GPUAI_RESUME_FROM") or os.environ.get("RESUME_FROM")]
    if not os.environ.get("GPUAI_CHECKPOINT_DIR"):
        found = sorted(f for f in os.listdir(checkpoint_dir()) if f.startswith("step-") and not f.endswith(".tmp"))
        places += [os.path.join(checkpoint_dir(), f) for f in found[-1:]]
    files = [os.path.join(p, "state.pt") for p in places if p]
    return next((f for f in files if os.path.isfile(f)), None)


def save(step, model, optimizer):
    """Writes a checkpoint, a directory, so that it is there as a whole or not at all."""
    path = os.path.join(checkpoint_dir(), "step-%08d" % step)
    if os.path.isdir(path):  # of an earlier start that was ended before it told of it
        return
    os.makedirs(path + ".tmp", exist_ok=True)
    with open(os.path.join(path + ".tmp", "state.pt"), "wb") as f:
        torch.save({"step": step, "model": model.module.state_dict(), "optimizer": optimizer.state_dict()}, f)
        f.flush()
        os.fsync(f.fileno())
    os.rename(path + ".tmp", path)


def tell(**what):
    print(json.dumps(what), flush=True)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--steps", type=int, default=400)
    p.add_argument("--every", type=int, default=20, help="steps between checkpoints")
    p.add_argument("--pace", type=float, default=0, help="seconds that a step takes at least")
    args = p.parse_args()

    torch.manual_seed(1)
    torch.set_num_threads(1)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    if BATCH % world:
        raise SystemExit("a batch of %d is not dealt to %d ranks" % (BATCH, world))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    model = DistributedDataParallel(nn.Sequential(nn.Linear(INPUTS, 32), nn.Tanh(), nn.Linear(32, 1)).to(device))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    step, found = 0, newest()
    if found:
        state = torch.load(found, map_location=device)
        step = state["step"]
        model.module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    # The gang's first task saves and tells. torchrun deals ranks in an order of its own, and a checkpoint
    # of the first task is what the region hands to all others.
    first = os.environ.get("GPUAI_NODE_RANK", os.environ["GROUP_RANK"]) == "0" and os.environ["LOCAL_RANK"] == "0"
    if first:
        tell(event="start", step=step, world=world, hosts=os.environ.get("GPUAI_NODE_IPS", ""),
             restart=int(os.environ.get("GPUAI_RESTART", "0")), at=time.time())

    x, y = (t.to(device) for t in data())
    part = BATCH // world
    while step < args.steps:
        began = time.monotonic()
        at = (step * BATCH) % SAMPLES + rank * part
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x[at:at + part]), y[at:at + part])
        loss.backward()
        optimizer.step()
        step += 1
        if first and (step % args.every == 0 or step == args.steps):
            save(step, model, optimizer)
            with torch.no_grad():
                whole = nn.functional.mse_loss(model.module(x), y).item()
            tell(event="step", step=step, loss=whole, world=world, at=time.time())
        time.sleep(max(0.0, args.pace - (time.monotonic() - began)))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

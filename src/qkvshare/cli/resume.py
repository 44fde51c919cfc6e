"""``qkvshare resume``: answer from a card, and write the longer card if asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..card import CacheCard
from .options import (
    MOST,
    AgentName,
    Card,
    KeyFile,
    Model,
    ProfileFile,
    TrustFile,
    finite,
    key_of,
    progress,
    writable,
)


def resume(
    card: Card,
    model: Model,
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", help="The text after the card's text.")
    ] = "",
    max_new_tokens: Annotated[
        int, typer.Option(min=1, max=MOST, help="The most tokens to generate.")
    ] = 128,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", callback=writable, help="Write the longer card here, to hand it on."
        ),
    ] = None,
    agent: AgentName = "",
    profile: ProfileFile = None,
    policy: Annotated[
        Literal["inject", "prefill", "auto"],
        typer.Option(
            help="inject the card, read its text again (prefill), or take the faster of the two "
            "(auto measures once for each machine, model and codec)."
        ),
    ] = "inject",
    link: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            max=MOST,
            callback=finite,
            metavar="MBIT",
            help="For auto: the card must first cross a link of this speed.",
        ),
    ] = None,
    key: KeyFile = None,
    trust: TrustFile = None,
) -> None:
    """Answer from a card: read PROMPT after it and print the model's greedy answer."""
    seal = key_of(key)
    known = CacheCard.load(card, key=seal, trust=trust)
    with progress.status("loading the model …") as status:
        import torch

        from ..hf.cache.complete import complete
        from ..hf.capture.capture import capture_cache
        from ..hf.inject.inject import prefill
        from ..hf.model.load import load_model
        from ..hf.session.costs import choose
        from ..hf.text.tokens import following
        from ..profile import Profile

        if profile is not None:
            Profile.load(profile).keep()
        loaded, tokenizer = load_model(model)
        status.update("answering from the card …")
        if policy == "auto":
            choice = choose(loaded, known, len(following(tokenizer, prompt)), link)
            progress.print(f"policy {choice}")
            policy = choice.policy
        if policy == "inject":
            arguments = known.inputs(loaded, tokenizer, prompt)
        else:
            arguments = prefill(known, loaded, tokenizer, prompt)
        read = arguments["input_ids"].shape[1]
        with torch.no_grad():
            result = loaded.generate(
                **arguments,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                return_dict_in_generate=True,
            )
        answer = result.sequences[0, read:]
        if output is not None:
            status.update("writing the longer card …")
            ids, cache = result.sequences, result.past_key_values
            complete(loaded, cache, ids)
            longer = capture_cache(loaded, cache, ids, tokenizer=tokenizer, agent=agent)
            longer.save(output, key=seal)
    typer.echo(tokenizer.decode(answer, skip_special_tokens=True))

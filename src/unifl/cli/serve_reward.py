"""`unifl serve-reward`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unifl.cli.console import err, out, quiet_libraries
from unifl.errors import UserError


def serve_reward(
    scorer: Annotated[
        str,
        typer.Argument(help="pickscore (see `unifl scorers`), world:rewards/color, a folder, module:name."),
    ],
    weights: Annotated[str | None, typer.Option(help="Where the weights of a scorer are.")] = None,
    base: Annotated[str | None, typer.Option(help="Where its tokenizer and config are.")] = None,
    question: Annotated[str | None, typer.Option(help="A text file with what a judge is asked.")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit or tag of the hub of its weights.")] = None,
    host: Annotated[str, typer.Option(help="Address to serve on; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8600,
    token_file: Annotated[
        Path | None,
        typer.Option(help="A file with the token that clients must send; or set UNIFL_REWARD_TOKEN."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures that the scorer sees at once.", min=1)] = 16,
    wait: Annotated[
        float, typer.Option(help="Milliseconds to wait for further questions on their way.", min=0, max=1000)
    ] = 5.0,
    queue: Annotated[int, typer.Option(help="Questions taken at once; others come back later.", min=1)] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Serve a scorer over HTTP, for training and scoring on other machines.

    Clients name it remote:http://HOST:PORT, in recipes and on the command
    line. Questions of several clients are put together into batches; when
    too many wait, clients are asked to come back. Whoever reaches the port
    can use the scorer: other addresses than this machine's own need a
    token, and the connection is not encrypted.

    For example:

        unifl serve-reward pickscore
        unifl serve-reward hpsv2.1 --weights HPS_v2.1_compressed.pt --base CLIP-ViT-H-14 --port 8601
        unifl serve-reward hpsv3 --question instruction.txt
        unifl serve-reward my_rewards:colour --host 0.0.0.0 --token-file token.txt
    """
    quiet_libraries()
    from unifl.assembly import resolve
    from unifl.assembly.device import chosen_device
    from unifl.assembly.on_pictures import on_pictures
    from unifl.feedback.remote import read_token
    from unifl.feedback.scorers import WorkerProcess

    try:
        from unifl.web.rewards import RewardServer, ServiceSettings, open_socket
    except ModuleNotFoundError as error:
        raise UserError(f"serving needs {error.name}; run `pip install 'unifl[web]'`") from error

    token = read_token(token_file)
    with open_socket(host, port, token=token) as listening:
        place = chosen_device(device)
        found = resolve.feedback(
            resolve.named(scorer, weights=weights, base=base, question=question, revision=revision),
            name=scorer.rpartition(":")[2],
            device=place,
        )
        judge = getattr(found, "function", None)
        if isinstance(judge, WorkerProcess):
            judge.start()  # its first client would otherwise read what is wrong with its weights
        settings = ServiceSettings(batch_size=batch_size, wait=wait / 1000, queue=queue)
        server = RewardServer(on_pictures(found, device=place), scorer, settings, token=token, device=place)
        shown = f"[{host}]" if ":" in host else host
        out.print(
            f"{found.name} at http://{shown}:{listening.getsockname()[1]}, fingerprint {server.served.fingerprint}; "
            "Ctrl-C stops",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:  # which uvicorn raises again once it has stopped
            err.print("stopped", highlight=False)

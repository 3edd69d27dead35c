"""Serve trained policies over WebSocket, in openpi's protocol."""

from __future__ import annotations

import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from .errors import UsageError
from .parsing import Output, episode_list, require_device, unset, use_threads
from .steering import split_hook_fields, steering

if TYPE_CHECKING:
    import ssl

    from ...policies.request import ServedPolicy
    from ...policies.serving.metadata import Metadata
    from ...policies.serving.models import Load
    from ...policies.serving.wire import Wire

EXAMPLE = "ulna serve runs/x/flow --port 8000"
prepare = split_hook_fields


@dataclass
class Args:
    checkpoints: Annotated[tyro.conf.Positional[list[str]], unset("none; name at least one")]
    """The trained policies, each a FOLDER or NAME=FOLDER, FILE.onnx of `ulna export`, or lerobot:FOLDER,
    which LeRobot trained. Clients ask for one by ws://HOST:PORT/NAME, and for the first without a name; a
    folder's own name is the default."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for other machines, which wants --key-file."""
    port: int = 8000
    """0 picks a free one."""
    key_file: Annotated[str, unset("no key is asked for", "FILE")] = ""
    """Keys of those who may ask, one a line; where there is no such file, it is made with a new key."""
    open: bool = False
    """Let other machines ask without a key, on a network that you trust."""
    tls: bool = False
    """Encrypt, with a certificate of our own, which clients know by the fingerprint that is shown."""
    tls_cert: Annotated[str, unset("our own", "FILE")] = ""
    """Encrypt with this certificate, PEM, those that signed it after it."""
    tls_key: Annotated[str, unset("in the same file", "FILE")] = ""
    """Its private key, PEM."""
    watch: bool = False
    """Load a checkpoint again when its folder changes; until it is ready the old one answers."""
    device: Annotated[str, tyro.conf.arg(metavar="cpu|cuda|cuda:N")] = "cpu"
    """Where the policies run."""
    threads: int = 1
    """Of the processor; more can be faster where nothing else runs."""
    sampling_steps: Annotated[int, unset("the recipe's")] = 0
    """Integration steps of the sampler."""
    quantize: Annotated[Literal["", "int8", "int4"], unset("not", "int8|int4")] = ""
    """Round weights to 8 bits, for each output, or 4, in groups of 64: a quarter or an eighth of the memory,
    on the processor. What that does to the actions is said at the start."""
    steer: Annotated[str, unset("none", "NAMES")] = ""
    """Hooks that act while sampling, with commas: ours, an installed package's, or package.module:Name. Their
    fields are options: --steer NAME --NAME.field value."""
    prompt: Annotated[str, unset("none", "FOLDER")] = ""
    """A dataset, for policies that are shown demonstrations when they act: a request that shows none is
    answered as if it showed these."""
    prompt_episodes: Annotated[str, unset("none")] = ""
    """Which of its episodes, like 3,7."""
    lerobot_port: Annotated[int, unset("off")] = 0
    """Serve LeRobot's async clients there, too; theirs is 8080."""
    lerobot_units: Annotated[str, unset("as the policy's", "UNITS")] = ""
    """What the robot of a LeRobot client measures joints in, for a policy in radians: degrees, percent or
    radians; single joints after it, with commas: degrees,gripper=percent."""
    lerobot_calibration: Annotated[str, unset("none", "FILE")] = ""
    """LeRobot's calibration of that robot, which percent need; of several arms left=FILE,right=FILE."""
    lerobot_arm: Annotated[Literal["", "so101", "koch"], unset("unknown", "so101|koch")] = ""
    """Whose calibration it is, where that matters."""
    groot_port: Annotated[int, unset("off")] = 0
    """Serve GR00T's clients there, too; theirs is 5555."""
    groot_modality: Annotated[str, unset("by the names of the joints", "FILE")] = ""
    """GR00T's modality.json: what it calls the parts of the state and the action, and the cameras."""
    json: bool = False
    """Print one JSON object when the server is ready."""
    hook_fields: Annotated[dict[str, str], tyro.conf.Suppress] = field(default_factory=dict)


def run(args: Args, out: Output) -> int:
    import logging

    from ...policies.serving.models import Models
    from ...policies.serving.server import PolicyServer

    for option in ("port", "lerobot_port", "groot_port"):
        if not 0 <= (port := getattr(args, option)) <= 65535:
            raise ValueError(f"--{option.replace('_', '-')} must lie in 0..65535, not {port}")
    folders = named(args.checkpoints)
    _require_access(args)
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("ulna.serving").setLevel(logging.INFO)
    models = Models.loaded(folders, _loader(args, folders))
    tls, fingerprint = _tls(args)
    access = _access(args)
    wires = _wires(args, models.metadata()[models.default])
    server = PolicyServer(models, args.host, args.port, access=access, tls=tls, watch=args.watch, wires=wires)

    def ready(url: str) -> None:
        served = models.metadata()
        value: dict[str, Any] = {
            "url": url,
            "health": url.replace("ws", "http", 1) + "/healthz",
            "models": {name: metadata.checkpoint for name, metadata in served.items()},
            "wires": [wire.url for wire in server.wires],
            **served[models.default].to_json(),
        }
        lines = [
            f"serving {m.recipe} {m.checkpoint[:8]} at {url}" + (f"/{name}" if len(served) > 1 else "")
            for name, m in served.items()
        ]
        lines += [f"and at {wire.url}" for wire in server.wires]
        if fingerprint:
            value["fingerprint"] = fingerprint
            lines.append(f"clients name its certificate: --server {url}#{fingerprint}")
        out.answer(value, "\n".join(lines) + " (Ctrl-C stops)")

    server.run(ready)
    return 0


def _loader(args: Args, folders: Mapping[str, str]) -> Load:
    """What makes a policy of a folder, or of a file that `ulna export` wrote."""
    exported = [f.endswith(".onnx") for f in folders.values()]
    if any(exported) and (
        args.steer or args.sampling_steps or args.quantize or args.prompt or args.device != "cpu"
    ):
        raise ValueError(
            "an exported policy runs on the processor as it was exported: leave --steer, --sampling-steps, "
            "--quantize, --prompt and --device out, or serve its checkpoint"
        )
    if bool(args.prompt) != bool(args.prompt_episodes):
        raise UsageError(
            "say which episodes of which dataset are shown: --prompt FOLDER --prompt-episodes 3,7"
        )
    if args.quantize and args.device != "cpu":
        raise UsageError(f"--quantize is for the processor: leave --device {args.device} out")
    if args.threads < 1:
        raise ValueError(f"--threads must be at least 1, not {args.threads}")
    hooks: list[Any] = []
    if not all(exported):  # torch only where it is needed
        use_threads(args.threads)
        hooks = steering(args.steer, args.hook_fields)
        require_device(args.device)

    def load(folder: str) -> ServedPolicy:
        if folder.endswith(".onnx"):
            from ...policies.serving.onnx_policy import OnnxPolicy

            return OnnxPolicy(folder, args.threads)
        from ...policies.serving.batch import BatchPolicy
        from ...policies.serving.local import LocalPolicy

        local = LocalPolicy(folder, args.device, args.sampling_steps or None, hooks)
        if args.prompt:
            from ..prompts import Prompts

            shown = episode_list(args.prompt_episodes)
            local.show(Prompts(args.prompt, local.metadata, shown).of("", 0))
        if args.quantize:
            from ...policies.serving.quantised import quantised

            _say(f"{folder}: {quantised(local, args.quantize).sentence}")
        return BatchPolicy(local)

    return load


def _wires(args: Args, metadata: Metadata) -> list[Wire]:
    """For the first model. They ask for no key, so where one is asked for they listen to this computer."""
    from ..wires import groot_wire, lerobot_wire

    host, wires = "127.0.0.1" if args.key_file else args.host, []
    if args.lerobot_port:
        said = (args.lerobot_units, args.lerobot_calibration, args.lerobot_arm)
        wires.append(lerobot_wire(metadata, host, args.lerobot_port, *said))
    if args.groot_port:
        wires.append(groot_wire(metadata, host, args.groot_port, args.groot_modality))
    if wires and host != args.host:
        _say("the wires of LeRobot and GR00T know no key: they answer this computer only, so use a tunnel")
    return wires


def named(checkpoints: Sequence[str]) -> dict[str, str]:
    """The folders by the models' names. UsageError where two have the same."""
    from ...policies.lerobot.folder import PREFIX
    from ...policies.serving.models import require_name

    if not checkpoints:
        raise UsageError("name a checkpoint: ulna serve FOLDER")
    folders: dict[str, str] = {}
    for text in checkpoints:
        name, equals, folder = text.partition("=")
        if not equals or Path(text).is_dir():
            name, folder = Path(text.removeprefix(PREFIX)).resolve().name, text
            # one model needs no name, so an odd folder is none's trouble
            name = name if len(checkpoints) > 1 else "policy"
        require_name(name)
        if name in folders:
            raise UsageError(
                f"{folders[name]} and {folder} would both be called {name}: give them names, as in "
                f"one={folders[name]} other={folder}"
            )
        folders[name] = folder
    return folders


def _require_access(args: Args) -> None:
    """UsageError where it is not said who may ask."""
    from ...policies.serving.access import is_loopback

    if args.key_file and args.open:
        raise UsageError("--open asks for no key, and --key-file for one: leave one of them out")
    if not (args.key_file or args.open or is_loopback(args.host)):
        raise UsageError(
            f"--host {args.host} lets other machines ask, and no key is asked for: add --key-file FILE (made "
            "where there is none), or --open on a network that you trust"
        )
    if args.tls_key and not args.tls_cert:
        raise UsageError("--tls-key is of a certificate: name it by --tls-cert")


def _access(args: Args) -> Any:
    from ...policies.serving.access import Access, is_loopback, make_key_file, read_keys

    alone = is_loopback(args.host)
    if not args.key_file:
        if not alone:
            _say(f"whoever reaches {args.host} may ask, without a key (--open)")
        return Access()
    file = Path(args.key_file).expanduser()
    if not file.exists():
        make_key_file(file)
        _say(f"made a key in {file}: copy it to the robot's computer, and name it there in ULNA_KEY_FILE")
    keys = read_keys(file)
    if file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        _say(f"others of this machine can read the keys in {file}: chmod 600 {file}")
    if not (alone or args.tls or args.tls_cert):
        _say("without --tls whoever listens on the network can read the key")
    return Access(keys)


def _tls(args: Args) -> tuple[ssl.SSLContext | None, str]:
    """(Of the certificate to show, the fingerprint of one of our own)."""
    import socket
    import ssl

    from ...drivers.certificate import state_dir, tls_context

    if args.tls_cert:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(args.tls_cert, args.tls_key or None)
        except (OSError, ssl.SSLError) as error:
            files = args.tls_cert + (f" and {args.tls_key}" if args.tls_key else "")
            reason = error.strerror if type(error) is not ssl.SSLError else "they do not belong together"
            raise UsageError(f"{files} cannot be used as certificate and key: {reason or error}") from None
        return context, ""
    if not args.tls:
        return None, ""
    names = {"localhost", "127.0.0.1", socket.gethostname()}
    if args.host not in ("0.0.0.0", "::", ""):
        names.add(args.host)
    return tls_context(sorted(names), state_dir() / "serve")


def _say(sentence: str) -> None:
    print(f"ulna: {sentence}", file=sys.stderr)

"""The Optuna dashboard over a study, on this machine alone."""

from __future__ import annotations

import sys
import warnings
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.exceptions import StorageInternalError

from nas_kd.errors import UsageError
from nas_kd.report.figures import absent, history
from nas_kd.report.rd_plot import figure, lines_of
from nas_kd.study.settings import OBJECTIVES
from nas_kd.study.study import Study
from nas_kd.study.trial_artifacts import store

HOST = "127.0.0.1"


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # Else a second server takes the port of the first without a word.
    allow_reuse_address = False


class _Silent(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing: a line per request helps nobody."""


def publish(study: Study) -> None:
    """Bring the study's own note and plots up to date, for any dashboard over its storage."""
    from optuna_dashboard import save_note, save_plotly_graph_object

    save_note(study.optuna, study_note(study))
    figures = {"rd-curves": figure(lines_of(study, study.baselines))}
    if (volume := history(study).figure) is not None:
        figures["hypervolume"] = volume
    for key, drawn in figures.items():
        save_plotly_graph_object(study.optuna, _titled(key, drawn), graph_object_id=key)


def _titled(key: str, drawn: dict[str, Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # plotly's remarks on what else could be installed
        from plotly.graph_objects import Figure
    titles = {"rd-curves": "R-D curves of the front", "hypervolume": "Hypervolume"}
    return Figure(drawn).update_layout(title=titles[key])


def study_note(study: Study) -> str:
    """What is searched, in Markdown."""
    rows = [f"| {key} | `{value}` |" for key, value in study.settings.to_json().items()]
    missing = [name for name in OBJECTIVES if name not in study.settings.objectives]
    lines = ["| setting | value |", "|---|---|", *rows, ""]
    lines += [f"{name} is absent: {absent(study, name)}" for name in missing]
    lines += [
        "",
        "Infeasible trials (Pruned here) miss part of the compared PSNR interval: the constraint is by how much, dB.",
    ]
    return "\n".join(lines)


def bind(study: Study, port: int) -> WSGIServer:
    """A server that is ready to serve; port 0 takes a free one. Raises UsageError where it is in use."""
    from optuna_dashboard import wsgi

    try:
        publish(study)
    except StorageInternalError as error:
        why = str(error.__cause__ or error).splitlines()[0]
        print(f"the study's note and plots stay as they were: {why}", file=sys.stderr)
    app = wsgi(study.url, artifact_store=store(study.folder))
    try:
        return make_server(HOST, port, app, server_class=_Server, handler_class=_Silent)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"--port {port}: cannot be used ({error}); give another, or 0 for a free one"
        ) from error


def serve(study: Study, port: int) -> None:
    """Serve until Ctrl-C."""
    with bind(study, port) as server:
        print(f"http://{HOST}:{server.server_port}/dashboard/  (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print(file=sys.stderr)

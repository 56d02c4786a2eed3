"""What reaches the terminal of what others wrote."""

from __future__ import annotations

import io

from rich.console import Console

from service.telling import terminal
from service.telling.view import rollout_view
from tests.stories import START, Story, policy

LINE = "[/bold] [red]No[/red] OpKernel [link=https://evil.example]here[/link] [[{{node x}}]]"


def test_a_log_line_in_a_metrics_sentence_is_text_and_no_markup() -> None:
    """TensorFlow writes brackets, and whoever reaches the service writes what they like into its log."""
    view = rollout_view(Story(policy=policy()).progressing().state, (), (), START)
    metrics = tuple(one.model_copy(update={"sentence": LINE}) for one in view.metrics)
    assert metrics
    out = io.StringIO()
    Console(file=out, width=200).print(terminal.rollout(view.model_copy(update={"metrics": metrics}), START))
    assert LINE in out.getvalue()

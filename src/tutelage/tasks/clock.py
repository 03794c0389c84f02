"""The clock that a chat template sees, so that a prompt does not depend on the day on which it is written out.

Templates of some models (Llama 3.1, Granite) call `strftime_now`, which `transformers` answers from the clock of its
own module. There is no argument for it, so that module's clock is replaced while our prompts are written out, and a
short template tries whether that worked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from typing import Any

from tutelage.errors import ConfigurationError

__all__ = ["TemplateClock", "seen_by_templates"]

CALL = "strftime_now"
_TRIAL = "{{ strftime_now('%Y-%m-%d %H:%M:%S') }}"


def _now() -> datetime:
    return datetime.now().replace(microsecond=0)


@dataclass
class TemplateClock:
    """A clock that stands still, and knows whether a template has looked at it.

    Fields:
      moment: what it shows.
      was_asked: whether some template's text depends on it.
    """

    moment: datetime = field(default_factory=lambda: _now())
    was_asked: bool = False

    def now(self, zone: tzinfo | None = None) -> datetime:
        """What a template gets; named as in `datetime`, in whose place it stands."""
        self.was_asked = True
        return self.moment if zone is None else self.moment.astimezone(zone)


@contextmanager
def seen_by_templates(clock: TemplateClock, template: str) -> Iterator[None]:
    """While this lasts, `template` gets its date from `clock`.

    Raises:
      ConfigurationError: the template asks for the date, and this version of transformers answers it from elsewhere.
    """
    if CALL not in template:
        yield
        return
    import transformers
    from transformers.utils import chat_template_utils

    module: Any = chat_template_utils
    wall_clock = getattr(module, "datetime", None)
    module.datetime = clock
    try:
        before = clock.was_asked
        texts, _ = module.render_jinja_template([[{"role": "user", "content": ""}]], chat_template=_TRIAL)
        clock.was_asked = before
        if texts != [clock.moment.strftime("%Y-%m-%d %H:%M:%S")]:
            raise ConfigurationError(
                f"the chat template asks for the date ({CALL}), and transformers {transformers.__version__} answers "
                "from a clock that cannot be set; expected one that can, so that a run reads the same prompts on every "
                "day. Use transformers 5.17 to 5.23, or write the date into data.chat_template_kwargs if the template "
                'reads one there (date_string = "26 Jul 2024").'
            )
        yield
    finally:
        module.datetime = wall_clock

"""`python -m tests.real.parts`: get every real part before the tests, so that their time is their own."""

from tests.real.parts.building import everything

everything()

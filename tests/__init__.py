"""Tests, by what they need: unit (nothing), contract (each port, fake and real), scenario (the whole service on
embedded parts), real (the whole service on real parts), calibration (error rates), benchmarks."""

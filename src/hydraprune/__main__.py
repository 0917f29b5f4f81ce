"""`python -m hydraprune` is the command `hydraprune`."""

from hydraprune.cli import main

raise SystemExit(main())

"""Compare the store with a model made of dictionaries, after random computations, failures, damage and pruning."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from selfcontrast.store import RESUME, Artifact, Stage, Store, verify
from selfcontrast.store.catalog import Catalog
from selfcontrast.store.prune import PruneQuery, choose, delete, sweep
from selfcontrast.store.runs import Run

Numbers = st.integers(0, 2)


class Histories(RuleBasedStateMachine):
    """A machine with two stages: base(n), and top(m), computed from base(n). Rule `forget` deletes a run's folder."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.root = self.folder / "store"
        self.root.mkdir()
        self.published: dict[Any, bool] = {}  # identity → whether the artifact is intact
        self.shards: dict[Any, int] = {}  # identity → shards kept by attempts that failed
        self.runs: dict[int, set[Any]] = {}  # run → artifacts that it uses
        self.existing_runs: set[int] = set()
        self.computed: list[Any] = []

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    def _get(self, store: Store, identity: Any, fail: bool = False) -> Artifact:
        stage, number, *base = identity
        inputs = {"base": self._get(store, tuple(base[0]))} if base else {}

        def compute(folder: Path) -> None:
            (folder / RESUME).mkdir(exist_ok=True)
            kept = len(list((folder / RESUME).iterdir()))
            assert kept == self.shards.get(identity, 0)
            (folder / RESUME / str(kept)).touch()
            (folder / "half").touch()
            if fail:
                raise RuntimeError
            (folder / "half").unlink()
            (folder / "content").write_text(f"{identity}")
            self.computed.append(identity)

        self.computed.clear()
        intact = self.published.get(identity, False)
        try:
            artifact = store.get(Stage(stage, 1, {"number": number}, inputs, compute))
        except RuntimeError:
            self.shards[identity] = self.shards.get(identity, 0) + 1
            raise
        assert (self.computed == [identity]) is not intact
        assert artifact.cached is intact
        assert artifact.manifest["resumed"] in ((True, False) if intact else (self.shards.get(identity, 0) > 0,))
        assert (artifact.path / "content").read_text() == f"{identity}"
        self.published[identity] = True
        if not intact:
            self.shards.pop(identity, None)
        return artifact

    def _store(self, number: int) -> Store:
        output = self.folder / f"run-{number}"
        output.mkdir(exist_ok=True)
        return Store(self.root, Run(self.root, output))

    @rule(run=Numbers, n=Numbers, m=Numbers, top=st.booleans())
    def get(self, run: int, n: int, m: int, top: bool) -> None:
        base = ("base", n)
        self._get(self._store(run), ("top", m, base) if top else base)
        self.runs.setdefault(run, set()).update({base, ("top", m, base)} if top else {base})
        self.existing_runs.add(run)

    @rule(n=Numbers)
    def fail(self, n: int) -> None:
        if not self.published.get(("base", n), False):
            with pytest.raises(RuntimeError):
                self._get(Store(self.root), ("base", n), fail=True)

    @rule(n=Numbers, kind=st.sampled_from(["truncated", "foreign", "missing", "manifest"]))
    def damage(self, n: int, kind: str) -> None:
        if not self.published.get(("base", n), False):
            return
        folder = self._get(Store(self.root), ("base", n)).path
        if kind == "truncated":
            (folder / "content").write_text("")
        elif kind == "foreign":
            (folder / "more").touch()
        else:
            (folder / ("content" if kind == "missing" else "manifest.json")).unlink()
        self.published["base", n] = False

    @rule(run=Numbers)
    def forget(self, run: int) -> None:
        shutil.rmtree(self.folder / f"run-{run}", ignore_errors=True)
        self.existing_runs.discard(run)

    @rule()
    def prune(self) -> None:
        for entry in choose(Catalog.read(self.root), PruneQuery()):
            assert delete(self.root, entry, used=False)
        sweep(self.root)
        self.runs = {run: used for run, used in self.runs.items() if run in self.existing_runs}
        needed = set().union(*self.runs.values())
        self.shards.clear()
        self.published = {identity: intact for identity, intact in self.published.items() if identity in needed}
        assert not list((self.root / "locks").glob("*"))

    @invariant()
    def published_artifacts_match_the_model(self) -> None:
        if hasattr(self, "root"):
            published = [f for f in self.root.glob("[bt]*/*") if len(f.name) == 20]
            assert len(published) == len(self.published)
            assert sum(verify(f) is None for f in published) == sum(self.published.values())
            assert not list(self.root.glob("trash/*"))


TestAnyHistory = Histories.TestCase
TestAnyHistory.settings = settings(max_examples=25, stateful_step_count=20)

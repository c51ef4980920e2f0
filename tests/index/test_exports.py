"""Exports to databases: the nearest there are the exactly nearest, and the same export again changes nothing."""

import datetime
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipkit.errors import UserError
from clipkit.index import exports
from clipkit.index.exports.rows import Export
from clipkit.vectors.joined import Joined
from tests.vectors import laying

QUERIES = laying.rows(5, 77)
HIDDEN = 4


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    """50 samples in two parts, of which number 4 has no caption."""
    text = laying.rows(50, 1000)
    text[HIDDEN] = 0
    return laying.ours(tmp_path / "v", text=text)


def exact(folder: Path, kind: str, k: int = 5) -> list[list[int]]:
    """The numbers of the nearest rows to QUERIES."""
    source = Joined([folder])
    products = QUERIES @ source.take(kind, np.arange(len(source))).T
    return np.argsort(-products, axis=1, kind="stable")[:, :k].tolist()


def test_batches_are_the_rows_with_one_schema(tmp_path: Path) -> None:
    folder = laying.theirs(tmp_path / "v", (4, 3), id=lambda i: i * 7, image_vector=lambda i: "taken")
    odd = pa.table({"image_path": ["a", "b", "c"], "n": [1.5, None, 2.0], "nothing": pa.nulls(3)})
    pq.write_table(odd, folder / "metadata" / "metadata_1.parquet")
    export = Export(Joined([folder]))
    batches = list(export.batches(3, "test"))
    assert [(batch.first, len(batch)) for batch in batches] == [(0, 3), (3, 1), (4, 3)]
    assert all(batch.table.schema == export.schema for batch in batches)
    assert export.schema.names == ["image_path", "caption", "id_", "image_vector_", "key", "n", "nothing"]
    records = [record for batch in batches for record in batch.table.to_pylist()]
    assert [record["key"] for record in records] == [*(f"{i:09d}" for i in range(4)), "a", "b", "c"]
    assert [record["id_"] for record in records] == [0, 7, 14, 21, None, None, None]
    assert [record["n"] for record in records] == [None] * 4 + [1.5, None, 2.0]
    rows = np.concatenate([batch.vectors["image"] for batch in batches])
    assert np.array_equal(rows, Joined([folder]).take("image", np.arange(7)))


def test_columns_that_disagree_are_text_and_names_are_told_apart(tmp_path: Path) -> None:
    folder = laying.theirs(tmp_path / "v", (2, 2), id=lambda i: i, id_=lambda i: -i)
    tables = [{"n": [1, 2], "big": [1 << 60, 1]}, {"n": ["x", None], "big": [0.5, 1.0]}]
    for i, table in enumerate(tables):
        path = folder / "metadata" / f"metadata_{i}.parquet"
        old = pq.read_table(path)
        pq.write_table(pa.table({**{name: old[name] for name in old.column_names}, **table}), path)
    export = Export(Joined([folder]))
    records = [record for batch in export.batches(9, "test") for record in batch.table.to_pylist()]
    assert [record["n"] for record in records] == ["1", "2", "x", None]
    assert [record["big"] for record in records] == [float(1 << 60), 1.0, 0.5, 1.0]
    assert [(record["id_"], record["id__"]) for record in records] == [(0, 0), (1, -1), (2, -2), (3, -3)]


@pytest.mark.parametrize(
    "to, message",
    [
        (
            "mongodb://u:secret@h/d",
            "--to mongodb: one of lancedb:FOLDER/TABLE, qdrant:http://HOST:6333/COLLECTION, postgresql:",
        ),
        ("lancedb:table", "--to lancedb:table: an address and the name of a table after a slash are needed"),
        ("lancedb:x/a b", "--to lancedb:x/a b: an address and the name of a table after a slash are needed"),
        ("qdrant:x/", "--to qdrant:x/: an address and the name of a collection after a slash are needed"),
        ("postgresql://[h/d?table=t", "--to postgresql: no address (Invalid IPv6 URL)"),
        ("postgresql://me:secret@h/d", "--to postgresql://h/d: the name of a table is needed: postgresql://USER@HOST/"),
    ],
)
def test_an_address_that_is_none_is_refused(vectors: Path, to: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        exports.export(vectors, to)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "to, package", [("lancedb:x/t", "lancedb"), ("qdrant:x/t", "qdrant_client"), ("postgres://h/d?table=t", "psycopg")]
)
def test_a_missing_package_is_named(vectors: Path, to: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    extra = {"qdrant_client": "qdrant", "psycopg": "pgvector"}.get(package, package)
    with pytest.raises(UserError) as error:
        exports.export(vectors, to)
    assert str(error.value) == f"--to: the package {package} is missing; type: pip install 'clipkit[{extra}]'"


class TestLanceDB:
    @pytest.fixture(autouse=True)
    def needs(self) -> None:
        pytest.importorskip("lancedb", reason="lancedb is not installed")

    def table(self, folder: Path, name: str = "t") -> Any:
        import lancedb

        return lancedb.connect(str(folder)).open_table(name)

    def nearest(self, table: Any, kind: str) -> list[list[int]]:
        found = [table.search(query, vector_column_name=f"{kind}_vector").distance_type("dot").limit(5).to_list()
                 for query in QUERIES]  # fmt: skip
        return [[row["id"] for row in rows] for rows in found]

    def test_its_nearest_are_the_exact_ones(self, vectors: Path, tmp_path: Path) -> None:
        told = exports.export(vectors, f"lancedb:{tmp_path}/db/t")["search"]
        assert told[0].startswith("lancedb: open_table('t').search(VECTOR, vector_column_name='image_vector')")
        table = self.table(tmp_path / "db")
        assert table.count_rows() == 50
        for kind in ("image", "text"):
            assert self.nearest(table, kind) == exact(vectors, kind)
        row = table.search().where("id = 7").to_list()[0]
        assert {name: row[name] for name in laying.record(7)} == laying.record(7)
        hidden = table.search().where(f"id = {HIDDEN}").to_list()[0]
        assert hidden["text_vector"] is None and hidden["image_vector"] is not None

    def test_the_same_again_changes_nothing_and_others_are_left_alone(self, vectors: Path, tmp_path: Path) -> None:
        import lancedb

        for _ in range(2):
            exports.export(vectors, f"lancedb:{tmp_path}/db/t")
        assert self.table(tmp_path / "db").count_rows() == 50
        exports.export(laying.ours(tmp_path / "w", (7,)), f"lancedb:{tmp_path}/db/t")
        assert self.table(tmp_path / "db").count_rows() == 7
        lancedb.connect(str(tmp_path / "db")).create_table("mine", [{"a": 1}])
        with pytest.raises(UserError, match="a table of that name is there and is not clipkit's; give another name"):
            exports.export(vectors, f"lancedb:{tmp_path}/db/mine")
        assert self.table(tmp_path / "db", "mine").count_rows() == 1

    def test_many_rows_get_an_index(self, tmp_path: Path) -> None:
        from clipkit.index.exports import lancedb as ours

        folder = laying.ours(tmp_path / "v", (600,), text=False)
        told = ours.write(Export(Joined([folder])), f"{tmp_path}/db/t", exact=500)
        table = self.table(tmp_path / "db")
        assert [index.columns for index in table.list_indices()] == [["image_vector"]] and ".nprobes(" in told[1]
        query = Joined([folder]).take("image", np.array([123]))[0]
        found = table.search(query, vector_column_name="image_vector").distance_type("dot").nprobes(50)
        assert found.refine_factor(20).limit(1).to_list()[0]["id"] == 123


class TestQdrant:
    @pytest.fixture(autouse=True)
    def needs(self) -> None:
        pytest.importorskip("qdrant_client", reason="qdrant-client is not installed")

    def client(self, folder: Path) -> Any:
        from qdrant_client import QdrantClient

        return QdrantClient(path=str(folder))

    def test_its_nearest_are_the_exact_ones(self, vectors: Path, tmp_path: Path) -> None:
        told = exports.export(vectors, f"qdrant:{tmp_path}/db/c")["search"]
        assert told[1].startswith("qdrant: query_points('c', VECTOR, using='text', ")
        client = self.client(tmp_path / "db")
        assert client.count("c").count == 50
        for kind in ("image", "text"):
            found = [client.query_points("c", query.tolist(), using=kind, limit=5).points for query in QUERIES]
            assert [[point.id for point in points] for points in found] == exact(vectors, kind)
        points = client.retrieve("c", [7, HIDDEN], with_vectors=True)
        assert points[0].payload == laying.record(7)
        assert [sorted(point.vector) for point in points] == [["image", "text"], ["image"]]
        client.close()

    def test_the_same_again_changes_nothing_and_a_shorter_one_removes(self, vectors: Path, tmp_path: Path) -> None:
        for _ in range(2):
            exports.export(vectors, f"qdrant:{tmp_path}/db/c")
        exports.export(laying.ours(tmp_path / "w", (7,)), f"qdrant:{tmp_path}/db/c")
        client = self.client(tmp_path / "db")
        assert [point.id for point in client.scroll("c", limit=100)[0]] == list(range(7))
        client.close()

    def test_other_vectors_are_left_alone(self, vectors: Path, tmp_path: Path) -> None:
        from qdrant_client import models

        client = self.client(tmp_path / "db")
        client.create_collection("c", models.VectorParams(size=4, distance=models.Distance.COSINE))
        client.close()
        with pytest.raises(UserError) as error:
            exports.export(vectors, f"qdrant:{tmp_path}/db/c")
        assert str(error.value) == "--to qdrant: the collection c is there and holds other vectors; give another name"

    @pytest.mark.filterwarnings("ignore::ResourceWarning")  # its client leaves the lock's file open then
    def test_a_folder_that_is_open_elsewhere_is_told(self, vectors: Path, tmp_path: Path) -> None:
        client = self.client(tmp_path / "db")
        with pytest.raises(UserError, match=f"^--to qdrant:{tmp_path}/db: .* is already accessed by another instance"):
            exports.export(vectors, f"qdrant:{tmp_path}/db/c")
        client.close()

    def test_a_server_that_is_not_there_is_told(self, vectors: Path) -> None:
        with pytest.raises(UserError, match="^--to qdrant:http://127.0.0.1:9: "):
            exports.export(vectors, "qdrant:http://127.0.0.1:9/c")


def _postgres() -> Path | None:
    """The folder of PostgreSQL's programs, where pgvector is installed too."""
    found = [Path(path).resolve().parent for path in [shutil.which("initdb")] if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in (folder for folder in found if (folder / "pg_config").is_file()):
        told = subprocess.run([folder / "pg_config", "--sharedir"], capture_output=True, text=True, check=False)
        if (Path(told.stdout.strip()) / "extension" / "vector.control").is_file():
            return folder
    return None


PROGRAMS = _postgres()


@pytest.mark.skipif(PROGRAMS is None, reason="PostgreSQL with pgvector is not installed (postgresql-NN-pgvector)")
class TestPostgres:
    @pytest.fixture(scope="class")
    def server(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
        """The address of a database of a server of our own, which listens to a socket in a temporary folder."""
        pytest.importorskip("pgvector", reason="pgvector is not installed")
        assert PROGRAMS is not None
        # the path of a socket is 107 letters long at most, and another user must reach it
        place = Path(subprocess.check_output(["mktemp", "-d", "/tmp/clipkit-pg.XXXXXX"], text=True).strip())
        user = self.user(place)
        run = {"user": user, "cwd": place, "check": True, "capture_output": True}
        initdb = [PROGRAMS / "initdb", "-D", place / "data", "-U", "me", "-A", "trust", "-N"]
        subprocess.run(initdb, **run)
        start = [PROGRAMS / "pg_ctl", "-D", place / "data", "-w", "-l", place / "log",
                 "-o", f"-k {place} -c listen_addresses='' -c fsync=off"]  # fmt: skip
        subprocess.run([*start, "start"], **{**run, "capture_output": False, "stdout": subprocess.DEVNULL})
        try:
            yield f"postgresql://me@/postgres?host={place}"
        finally:
            subprocess.run([PROGRAMS / "pg_ctl", "-D", place / "data", "-m", "immediate", "stop"], **run)
            shutil.rmtree(place)

    def user(self, place: Path) -> int | None:
        """Who may start it: PostgreSQL refuses to run as root."""
        if os.geteuid():
            return None
        user = pwd.getpwnam("nobody").pw_uid
        os.chown(place, user, -1)
        return user

    def ask(self, server: str, query: str, *values: Any) -> list[tuple[Any, ...]]:
        import psycopg

        with psycopg.connect(server) as connection:
            cursor = connection.execute(query, values)
            return cursor.fetchall() if cursor.description else []

    def test_its_nearest_are_the_exact_ones(self, vectors: Path, server: str) -> None:
        told = exports.export(vectors, f"{server}&table=exact")["search"]
        assert told == [f"postgresql: select key from exact order by {kind}_vector <#> VECTOR limit 10"
                        for kind in ("image", "text")]  # fmt: skip
        for kind in ("image", "text"):
            query = (
                f"select id from exact where {kind}_vector is not null order by {kind}_vector <#> %s::vector limit 5"
            )
            found = [self.ask(server, query, str(query_.tolist())) for query_ in QUERIES]
            assert [[row[0] for row in rows] for rows in found] == exact(vectors, kind)
        names = ", ".join(f'"{name}"' for name in laying.record(7))
        assert self.ask(server, f"select {names} from exact where id = 7") == [tuple(laying.record(7).values())]
        missing = "select id from exact where text_vector is null or image_vector is null"
        assert self.ask(server, missing) == [(HIDDEN,)]

    def test_the_same_again_changes_nothing_and_a_shorter_one_removes(
        self, vectors: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from clipkit.index.exports import pgvector as ours

        monkeypatch.setattr(ours, "AT_ONCE", 7)
        self.ask(server, "create schema if not exists mine")
        for _ in range(2):
            exports.export(vectors, f"{server}&table=mine.again")
        assert self.ask(server, "select count(*), min(id), max(id) from mine.again") == [(50, 0, 49)]
        exports.export(laying.ours(tmp_path / "w", (7,), seed=5), f"{server}&table=mine.again")
        assert self.ask(server, "select count(*), max(id) from mine.again") == [(7, 6)]

    def test_text_that_postgresql_cannot_hold_loses_its_zeros(self, server: str, tmp_path: Path) -> None:
        folder = laying.theirs(tmp_path / "v", (2,), tags=lambda i: [f"a\0{i}"], odd=lambda i: f"x\0{i}")
        exports.export(folder, f"{server}&table=zeros")
        assert self.ask(server, "select odd, tags from zeros order by id") == [("x0", ["a0"]), ("x1", ["a1"])]

    def test_what_json_cannot_say_is_kept_as_it_can(self, server: str, tmp_path: Path) -> None:
        day = datetime.date(2024, 2, 29)
        folder = laying.theirs(
            tmp_path / "v", (2,), boxes=lambda i: [{"x": float("nan"), "day": day, "raw": b"a"}],
            half=lambda i: np.float16(i / 2),
        )  # fmt: skip
        exports.export(folder, f"{server}&table=odd")
        found = self.ask(server, "select boxes, half from odd order by id")
        assert found == [([{"x": None, "day": "2024-02-29", "raw": "b'a'"}], i / 2) for i in range(2)]

    def test_many_rows_get_an_index(self, server: str, tmp_path: Path) -> None:
        from clipkit.index.exports import pgvector as ours

        folder = laying.ours(tmp_path / "v", (600,), text=False)
        for _ in range(2):
            told = ours.write(Export(Joined([folder])), f"{server}&table=indexed", exact=500)
        assert "set ivfflat.probes = 1" in told[1]
        names = self.ask(server, "select indexname from pg_indexes where tablename = 'indexed' order by 1")
        assert names == [("indexed_image_vector",), ("indexed_key",), ("indexed_pkey",)]

    def test_a_database_without_the_extension_says_what_to_type(self, vectors: Path, server: str) -> None:
        import psycopg

        with psycopg.connect(server, autocommit=True) as connection:  # no database is made within a transaction
            connection.execute("create role poor login")
            connection.execute("create database bare")
        poor = server.replace("//me@/postgres", "//poor@/bare")
        with pytest.raises(UserError) as error:
            exports.export(vectors, f"{poor}&table=t")
        assert str(error.value).startswith("--to postgresql:///bare?table=t: the extension pgvector is missing (")
        assert str(error.value).endswith("install it, and as the database's owner type: CREATE EXTENSION vector")

    def test_somebody_elses_table_is_left_alone(self, vectors: Path, server: str) -> None:
        self.ask(server, "create table other (id bigint, name text)")
        with pytest.raises(UserError) as error:
            exports.export(vectors, f"{server}&table=other")
        assert str(error.value).endswith("the table other is there and has other columns; give another name")
        assert self.ask(server, "select count(*) from other") == [(0,)]


def test_a_server_that_is_not_there_is_told_without_the_password(vectors: Path) -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    pytest.importorskip("pgvector", reason="pgvector is not installed")
    with pytest.raises(UserError) as error:
        exports.export(vectors, "postgresql://me:secret@127.0.0.1:9/d?table=t")
    assert str(error.value).startswith("--to postgresql://127.0.0.1:9/d?table=t: ") and "secret" not in str(error.value)

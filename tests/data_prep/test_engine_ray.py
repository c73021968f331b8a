"""The Ray engine on a cluster of two workers: the files of the local engine."""

import sys

import pytest

from data_prep import prepare
from ofaseg.data.shards import ShardError
from tests.data_prep.toy_source import ToySource, content, ids, write


def test_without_ray(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ShardError, match="needs Ray on every machine of the cluster: pip install 'ofaseg.ray.'"):
        write(ToySource(), tmp_path, engine="ray")


@pytest.fixture(scope="module")
def cluster():
    """A local Ray cluster: two nodes of one core each."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ofaseg[ray]'")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.delenv("RAY_ADDRESS", raising=False)
        import ray
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 128 << 20}
        nodes = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
        nodes.add_node(**node)
        ray.init(address=nodes.address, log_to_driver=False)
        yield nodes
        ray.shutdown()
        nodes.shutdown()


@pytest.mark.slow
class TestCluster:
    def test_two_workers_are_there(self, cluster):
        import ray

        assert len([node for node in ray.nodes() if node["Alive"]]) == 2 and ray.cluster_resources()["CPU"] == 2

    @pytest.mark.parametrize("format", ["tsv", "parquet"])
    def test_the_files_are_those_of_the_local_engine(self, cluster, tmp_path, format):
        for engine in ("local", "ray"):
            workers = {"local": 1, "ray": 2}[engine]
            summary = write(ToySource(20, bad=[4]), tmp_path / engine, format=format, engine=engine, workers=workers, skip_bad=True)
        assert content(tmp_path / "local") == content(tmp_path / "ray") and len(ids(tmp_path / "ray")) == 19
        assert summary["skipped"] == [{"sample": "raw/4.raw", "reason": "raw/4.raw: damaged; copy it again"}]

    def test_an_unfinished_local_run_goes_on_with_ray(self, cluster, tmp_path):
        with pytest.raises(ValueError, match="damaged"):
            write(ToySource(bad=[7]), tmp_path / "out")
        write(ToySource(), tmp_path / "out", engine="ray", resume=True)
        write(ToySource(), tmp_path / "local")
        assert content(tmp_path / "out") == content(tmp_path / "local")

    def test_a_bad_sample(self, cluster, tmp_path):
        with pytest.raises(ShardError, match="raw/7.raw: damaged; copy it again"):
            write(ToySource(bad=[7]), tmp_path, engine="ray", workers=2)
        assert not list(tmp_path.rglob("*.part"))

    def test_the_command(self, cluster, tmp_path):
        arguments = ["shapes", "--splits", "val", "--num", "9", "--rows-per-shard", "4", "--workers", "2"]
        for engine in ("local", "ray"):
            options = ["--workers", "1"] if engine == "local" else ["--engine", "ray"]
            assert prepare.main([*arguments, *options, "--out", str(tmp_path / engine)]) == 0
        assert content(tmp_path / "local") == content(tmp_path / "ray")

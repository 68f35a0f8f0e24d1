"""Building a corpus on many machines with Apache Beam (extra `beam`, in an environment of its own).

The same function as on one machine makes each shard. Inputs, vocabulary and output directory must be found under the
same paths by all workers, as on a network file system.
"""

import re
from collections.abc import Sequence

from keras_bert.errors import ConfigError, DataError
from keras_bert.pretrain.corpus import ShardJob, build_shard


def run(jobs: Sequence[ShardJob], options: Sequence[str] = ()) -> None:
    """Build shards in a pipeline.

    Args:
        jobs: of `corpus.build`.
        options: Beam's own, such as `--runner=FlinkRunner`; by default the runner of this machine.

    Raises:
        ConfigError: Beam is not installed.
        DataError: an input cannot be used.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ConfigError(
            f"--runner=beam needs the package apache-beam, which cannot be imported here ({error}); "
            "`pip install 'keras3-bert[beam]'` in an environment of its own"
        ) from error
    try:
        with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
            _ = pipeline | beam.Create(list(jobs)) | beam.Reshuffle() | beam.Map(build_shard)
    except Exception as error:  # Beam hands on what a worker raised as text
        ours = re.search(r"DataError: (.*?)(?: \[while running|$)", str(error), re.M)
        if not ours:
            raise
        raise DataError(ours[1]) from error

"""Arguments of transformers that would do nothing here, or something else than they say."""

from prefopt.config import PreferenceConfig


def check_used(args: PreferenceConfig) -> None:
    """Check that each argument that was given does what it says.

    Raises:
        ValueError: If one would do nothing, saying what to do instead.
    """
    loading = args.accelerator_config
    if loading.dispatch_batches:
        raise ValueError(
            "dispatch_batches=True is not supported: batches are records of several shapes, which "
            "one process cannot cut up and send to the others; leave it out: each process reads "
            "its own share"
        )
    if not loading.use_seedable_sampler:
        raise ValueError(
            "use_seedable_sampler=False is not supported: the order of the rows follows from seed "
            "and epoch, so that all processes agree on it and a run can be resumed; leave it out"
        )
    # No row is taken twice, so that nothing can be evened up by repeating some.
    loading.dispatch_batches, loading.even_batches = False, False

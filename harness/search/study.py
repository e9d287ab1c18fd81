"""A study: opened or resumed, its baselines trained, and its workers at work.

The records in the study's folder are the source of truth. A run begins by bringing the database up to them: points of
trained networks that it does not hold are added, and trials whose worker is gone are closed and, where they have no
record, proposed again, to be trained on from their checkpoints. One search at a time leads in a folder; workers may
join it. Two folders must not share a study of the same name in one storage.
"""

import contextlib
import hashlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import optuna
from filelock import FileLock, Timeout

from harness.core.checkpoints import parse_place
from harness.core.configs import AnyModelConfig, SwinIRConfig, TrainingConfig
from harness.core.environment import now
from harness.core.errors import OutageError, UserError
from harness.core.files import NO_ROOM, no_room, shared_lock, write_text
from harness.core.records import StudyRecord, TrialRecord
from harness.core.study_folder import StudyFolder
from harness.models import preset_config
from harness.search.checkpoints import claim_place, join_place
from harness.search.mark import Mark
from harness.search.processes import lead
from harness.search.ray_cluster import RayCluster, lead_on_ray
from harness.search.space import SearchSpace
from harness.search.storage import LOST_ERRORS, connect, describe, load_study, lost, open_study, patiently
from harness.search.worker import RunTrial, SearchOutcome, Worker
from harness.training import TrainingInterruptedError
from harness.trial import Proposal, TrialProgress, TrialSetup, with_teacher

_FOLDER_ATTRIBUTE = "folder"  # of the study: what the file of that name in its folder says


def study_record(name: str, space: SearchSpace, space_text: str, setup: TrialSetup) -> StudyRecord:
    """Describe a study for those who read its folder."""
    return StudyRecord(
        name=name,
        scale=space.scale,
        task=space.task,
        protocol=space.data.protocol,
        objectives=space.objectives,
        constraints=space.constraints,
        data=space.data_config,
        training=space.training_config(),
        latency_input_size=setup.latency_input_size,
        macs_input_size=setup.macs_input_size,
        devices=setup.devices,
        validation_images=tuple(setup.validation[index].name for index in range(len(setup.validation))),
        space=space_text,
        space_hash=study_identity(space, setup),
        created_at=now(),
    )


def run_search(
    space: SearchSpace,
    setup: TrialSetup,
    record: StudyRecord,
    *,
    storage: str | None = None,
    checkpoints: str | None = None,
    workers: int = 1,
    cluster: RayCluster | None = None,
    on_start: Callable[[], None] = lambda: None,
    on_record: Callable[[TrialRecord], None] = lambda record: None,
    progress: TrialProgress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    run_trial: RunTrial | None = None,
) -> SearchOutcome:
    """Run a study until its budget is spent, from the start or from where it was left.

    `storage` is any Optuna RDB URL; by default an SQLite database in the study's folder.
    `checkpoints` is a path or an fsspec URL that all workers reach; by default where the study kept them before, and
    that is its folder. More than one of `workers` run
    in processes of their own, each with the setup's threads; with a `cluster` all run on its nodes. `on_start` is
    called when the study is open and nothing speaks against it; `on_record` gets every record that is made meanwhile,
    after it is on disk. `run_trial` takes the place of the real one, for benches of what lies around it, with a single
    worker. A second search in the same folder is refused. Raises `UserError` where the folder or the storage holds
    another space's study, and where the storage or the place of checkpoints cannot be reached or the disk is full.
    """
    folder = setup.folder
    if checkpoints is None and folder.study_file.is_file():
        checkpoints = folder.read_study().checkpoints
    keep = None if checkpoints is None else parse_place(checkpoints)
    place = storage or f"sqlite:///{folder.database.resolve()}"
    connection = None if storage is None else connect(place)  # before anything is written
    if keep is not None:
        keep.probe(make=True)
        record = record.model_copy(update={"checkpoints": str(keep)})
    folder.path.mkdir(parents=True, exist_ok=True)
    with _exclusive(folder):
        if folder.study_file.is_file():
            known = folder.read_study()
            _refuse_other_space(known, record)
            record = record.model_copy(update={"created_at": known.created_at})
        connection = connection or connect(place)
        worker: Worker | None = None
        try:
            study = open_study(space, record, connection)
            folder.write_study(record)
            _claim(folder, study)
            if keep is not None:
                setup = replace(setup, folder=claim_place(folder, study, keep))
            on_start()
            with Mark() as mark:
                worker = Worker(
                    space,
                    setup,
                    study,
                    mark,
                    on_record=on_record,
                    progress=progress,
                    should_stop=should_stop,
                    run=run_trial,
                )
                try:
                    for name in space.baselines:
                        if should_stop():
                            return SearchOutcome("interrupted", "stopped on request", len(worker.ledger.trained))
                        _run_baseline(space, setup, worker, name, progress, should_stop)
                except TrainingInterruptedError as interruption:
                    return SearchOutcome("interrupted", f"training was {interruption}", len(worker.ledger.trained))
                patiently(study, worker.close_left, should_stop)
                if keep is not None:
                    _remove_left(worker)
                for trained in list(worker.ledger.trained.values()):
                    patiently(study, partial(worker.add_points, trained), should_stop)
                if cluster is not None:
                    return lead_on_ray(worker, place, workers, cluster)
                if workers == 1:
                    return worker.run()
                return lead(worker, place, workers)
        except LOST_ERRORS as error:
            if should_stop():
                return _stopped_without_storage(worker)
            raise lost(connection, error) from error
        except MemoryError as error:
            raise UserError(
                f"{folder.path}: out of memory; every finished trial is on disk, and the same command goes on from "
                "there once there is more"
            ) from error
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise OutageError(no_room(folder.path, error)) from error


def _claim(folder: StudyFolder, study: optuna.Study) -> None:
    """Mark folder and study as each other's, so that a worker elsewhere knows whether it sees the same folder."""
    if not folder.token_file.is_file():
        write_text(folder.token_file, secrets.token_hex(8))
    study.set_user_attr(_FOLDER_ATTRIBUTE, folder.token_file.read_text(encoding="utf-8"))


def _remove_left(worker: Worker) -> None:
    """Remove checkpoints of networks that are done, from a place that was away when they were; if not now, later."""
    with contextlib.suppress(UserError):
        for found in worker.setup.folder.checkpoints.find():
            if worker.ledger.is_known(found.network_id):
                worker.setup.folder.checkpoint(found.network_id).remove()


def join_search(
    space: SearchSpace,
    setup: TrialSetup,
    record: StudyRecord,
    *,
    storage: str,
    checkpoints: str | None = None,
    on_record: Callable[[TrialRecord], None] = lambda record: None,
    progress: TrialProgress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> SearchOutcome:
    """Work for a study that `run_search` has begun, on this machine or another, until its budget is spent.

    `checkpoints` says how to come to where the study keeps them, where that is not what the study says. `UserError`
    where there is no such study in the storage, where its folder, its images or its checkpoints are not those that are
    seen here, and where the storage or the place of checkpoints cannot be reached.
    """
    connection = connect(storage)
    study = load_study(connection, record.name)
    if study_identity(space, setup) != record.space_hash:
        raise UserError(
            f"the images here are not those of study {record.name!r}: {setup.train.name} or {setup.validation.name} "
            "differ; give the same ones, by --data-dir if they are elsewhere"
        )
    token = setup.folder.token_file.read_text(encoding="utf-8") if setup.folder.token_file.is_file() else None
    if study.user_attrs.get("space_hash") != record.space_hash or study.user_attrs.get(_FOLDER_ATTRIBUTE) != token:
        raise UserError(
            f"{setup.folder.path} is not the folder that study {record.name!r} in {describe(connection)} is kept in; "
            "workers need one folder that all of them reach, such as a network share"
        )
    setup = replace(setup, folder=join_place(setup.folder, study, checkpoints))
    worker: Worker | None = None
    try:
        with Mark() as mark, shared_lock(setup.folder.worker_lock):
            worker = Worker(space, setup, study, mark, on_record=on_record, progress=progress, should_stop=should_stop)
            return worker.run()
    except LOST_ERRORS as error:
        if should_stop():
            return _stopped_without_storage(worker)
        raise lost(connection, error) from error


def _stopped_without_storage(worker: Worker | None) -> SearchOutcome:
    """Return how a search ends that is to stop while its storage is away: whoever comes next tells what is untold."""
    return SearchOutcome("interrupted", "stopped on request", 0 if worker is None else len(worker.ledger.trained))


def baseline_config(space: SearchSpace, name: str) -> AnyModelConfig:
    """Return the config of a baseline; a network gets the image residual that the searched networks get."""
    model = preset_config(name, space.scale)
    if isinstance(model, SwinIRConfig):
        return model.model_copy(update={"image_residual": bool(space.model.get("image_residual", False))})
    return model


def study_identity(space: SearchSpace, setup: TrialSetup) -> str:
    """Hash the space, the images and the teachers: results of different ones must not be mixed."""
    teachers = [setup.teachers[place] for place in space.teachers()]
    content = "/".join((space.identity(), setup.train.content_hash, setup.validation.content_hash, *teachers))
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _run_baseline(
    space: SearchSpace,
    setup: TrialSetup,
    worker: Worker,
    name: str,
    progress: TrialProgress | None,
    should_stop: Callable[[], bool],
) -> None:
    record_id = f"baseline-{name}"
    if record_id in worker.ledger.records and worker.ledger.records[record_id].state == "complete":
        return
    model = baseline_config(space, name)
    training: TrainingConfig | None = None
    if name != "bicubic":
        training = with_teacher(space.baseline_training_config(), setup.teachers)
    proposal = Proposal(record_id, "baseline", None, model, training, (None,), None)
    record = worker.run_trial(setup, proposal, progress=progress, should_stop=should_stop)
    worker.ledger.finish(record)
    if record.state != "complete":
        raise UserError(f"baseline {name} failed: {record.reason}")


@contextlib.contextmanager
def _exclusive(folder: StudyFolder) -> Iterator[None]:
    lock = FileLock(folder.search_lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another search is running in {folder.path}; wait for it, or take another --study") from None
    try:
        yield
    finally:
        lock.release()


def _refuse_other_space(known: StudyRecord, record: StudyRecord) -> None:
    if known.space_hash != record.space_hash:
        raise UserError(
            f"study {record.name!r} was made with another search space, other images or another teacher (only budget, "
            "sampler, stopping, queue and description may change); give this one another name with --study"
        )

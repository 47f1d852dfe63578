"""Settings of a run, read from YAML and checked. Imports nothing heavy: a wrong setting is reported in a second."""

from demopsd_dist.config.collapse_settings import AlarmAction, AlarmConfig
from demopsd_dist.config.cross_checks import longest_sequence_tokens
from demopsd_dist.config.data_settings import MINISCI, SPLIT, DataConfig, Duplicates, FieldNames, Format
from demopsd_dist.config.method_settings import (
    Aggregation,
    Divergence,
    Gate,
    MethodName,
    SupportOf,
    Variant,
    WeightSource,
)
from demopsd_dist.config.precision_settings import (
    LogpBounds,
    check_optimizer_package,
    logp_bounds,
    publishes_on_gpus,
    teacher_precision,
)
from demopsd_dist.config.ranges import LARGEST
from demopsd_dist.config.reading import config_path, load, settings_keys, shipped_configs, to_yaml
from demopsd_dist.config.recording_settings import SamplesConfig, SinksConfig, WandbMode
from demopsd_dist.config.resume_changes import changes, changes_of_training
from demopsd_dist.config.role_settings import (
    LearnerConfig,
    Offload,
    OnPublish,
    Optimizer,
    Precision,
    RolloutConfig,
    Schedule,
    TeacherConfig,
)
from demopsd_dist.config.schema import (
    Config,
    Limits,
    ModelConfig,
    RewardErrors,
    SolutionSource,
    SystemRole,
    Transport,
    TruncatedReward,
)
from demopsd_dist.config.train_sets import TrainSet, sources_of, train_sets, train_text

__all__ = [
    "LARGEST",
    "MINISCI",
    "SPLIT",
    "Aggregation",
    "AlarmAction",
    "AlarmConfig",
    "Config",
    "DataConfig",
    "Divergence",
    "Duplicates",
    "FieldNames",
    "Format",
    "Gate",
    "LearnerConfig",
    "Limits",
    "LogpBounds",
    "MethodName",
    "ModelConfig",
    "Offload",
    "OnPublish",
    "Optimizer",
    "Precision",
    "RewardErrors",
    "RolloutConfig",
    "SamplesConfig",
    "Schedule",
    "SinksConfig",
    "SolutionSource",
    "SupportOf",
    "SystemRole",
    "TeacherConfig",
    "TrainSet",
    "Transport",
    "TruncatedReward",
    "Variant",
    "WandbMode",
    "WeightSource",
    "changes",
    "changes_of_training",
    "check_optimizer_package",
    "config_path",
    "load",
    "logp_bounds",
    "longest_sequence_tokens",
    "publishes_on_gpus",
    "settings_keys",
    "shipped_configs",
    "sources_of",
    "teacher_precision",
    "to_yaml",
    "train_sets",
    "train_text",
]

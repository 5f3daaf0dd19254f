"""Typed errors. Each message says what was expected, what came, and which rule or file it concerns."""


class LinrecError(Exception):
    """Base of every error that linrec raises on purpose."""


class ShapeError(LinrecError, ValueError):
    """A tensor has the wrong rank, or its dimensions disagree with the other arguments."""


class DtypeError(LinrecError, ValueError):
    """A tensor has an unsupported dtype, or dtypes are mixed where they must agree."""


class DeviceError(LinrecError, ValueError):
    """Tensors of one call live on different devices."""


class RangeError(LinrecError, ValueError):
    """A value lies outside its domain (a positive log-decay, say); raised only while validation is on."""


class UnknownNameError(LinrecError, ValueError):
    """No rule, layer, form, backend, feature map or task has this name."""


class ArgumentError(LinrecError, TypeError, ValueError):
    """A keyword is not known, cannot be honoured, or contradicts another one."""


class DefinitionError(LinrecError, ValueError):
    """A rule or layer is not defined as the kit needs it: no citation or equation, a formula in unknown names, a name
    that another one has."""


class FormError(LinrecError, ValueError):
    """The rule has no such form; the message gives the mathematical reason."""


class BackendError(LinrecError, RuntimeError):
    """The requested backend cannot run here, or cannot run this call."""


class ConfigError(LinrecError, ValueError):
    """A model, training or launch configuration is inconsistent."""


class CheckpointError(LinrecError, ValueError):
    """A checkpoint or session file is missing, damaged, or belongs to another model."""


class SessionError(CheckpointError):
    """A session cannot go on, or its file is missing, damaged, or belongs to another model."""


class RecordError(LinrecError, ValueError):
    """A file of results holds a line that is no record."""


class FileError(LinrecError, OSError):
    """A file could not be written: a full disk, no permission, a folder in its place."""


class DatasetError(LinrecError, RuntimeError):
    """A task's data set cannot be had here (no network, gated, or gone)."""


class BenchmarkError(LinrecError, RuntimeError):
    """Two implementations that were to be timed side by side do not compute the same."""

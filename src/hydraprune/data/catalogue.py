"""The data sets that hydraprune knows by name. A new one is a reader and one entry here."""

from collections.abc import Callable
from dataclasses import dataclass

from hydraprune.data.cifar import read_cifar10, read_cifar100
from hydraprune.data.dataset import Split
from hydraprune.data.digits import read_digits
from hydraprune.data.folder import DataFolder
from hydraprune.data.idx import read_mnist_layout
from hydraprune.data.svhn import read_svhn
from hydraprune.registry import Registry

Reader = Callable[[DataFolder], tuple[Split, Split]]


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before it is read.

    Args:
        description: one line.
        in_shape: (channels, height, width).
        class_names: what label i is called.
        train_size: images in the training split.
        test_size: images in the test split.
        mean: per channel, of the training pixels in [0, 1].
        std: likewise.
        reader: folder -> (training split, test split).
        subfolder: where the usual tools put the files inside a root; empty when nothing is on disk.
        files: (path inside the folder, MD5) of each file; empty when the data comes with a package.
        unpacked: (path, MD5) of the same files, in the same order, where they may also lie there unpacked.
        mirrors: the addresses in front of a file's name where it can be fetched, the best first.
        archive: (name, MD5) of the tar.gz that is fetched instead and holds all files in a folder `subfolder`.
    """

    name: str
    description: str
    in_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    train_size: int
    test_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    reader: Reader
    subfolder: str = ""
    files: tuple[tuple[str, str], ...] = ()
    unpacked: tuple[tuple[str, str], ...] = ()
    mirrors: tuple[str, ...] = ()
    archive: tuple[str, str] | None = None

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def embedded(self) -> bool:
        """Whether the data comes with a package and needs no folder."""
        return not self.files


DATASETS: Registry[DatasetInfo] = Registry("data set")

_DIGIT_NAMES = tuple("0123456789")
_CLOTHING_NAMES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_KRIZHEVSKY = ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/")
_CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100_NAMES = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
    pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
    """.split()  # noqa: SIM905 - a hundred pairs of quotes help nobody
)


def _add(info: DatasetInfo) -> None:
    DATASETS.register(info.name)(info)


_add(
    DatasetInfo(
        name="digits",
        description="handwritten digits inside scikit-learn (Alpaydin and Kaynak 1998)",
        in_shape=(1, 8, 8),
        class_names=_DIGIT_NAMES,
        train_size=1300,
        test_size=497,
        mean=(0.3054,),
        std=(0.3759,),
        reader=lambda _: read_digits(),
    )
)
_add(
    DatasetInfo(
        name="mnist",
        description="handwritten digits (LeCun, Cortes and Burges 1998)",
        in_shape=(1, 28, 28),
        class_names=_DIGIT_NAMES,
        train_size=60_000,
        test_size=10_000,
        mean=(0.1307,),
        std=(0.3081,),
        reader=read_mnist_layout,
        subfolder="MNIST/raw",
        files=(
            ("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            ("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
            ("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
            ("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
        ),
        unpacked=(
            ("train-images-idx3-ubyte", "6bbc9ace898e44ae57da46a324031adb"),
            ("train-labels-idx1-ubyte", "a25bea736e30d166cdddb491f175f624"),
            ("t10k-images-idx3-ubyte", "2646ac647ad5339dbf082846283269ea"),
            ("t10k-labels-idx1-ubyte", "27ae3e4e09519cfbb04c329615203637"),
        ),
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
    )
)
_add(
    DatasetInfo(
        name="fashion-mnist",
        description="articles of clothing (Xiao et al. 2017, arXiv 1708.07747)",
        in_shape=(1, 28, 28),
        class_names=_CLOTHING_NAMES,
        train_size=60_000,
        test_size=10_000,
        mean=(0.2860,),
        std=(0.3530,),
        reader=read_mnist_layout,
        subfolder="FashionMNIST/raw",
        files=(
            ("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            ("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
            ("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
            ("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
        ),
        unpacked=(
            ("train-images-idx3-ubyte", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
            ("train-labels-idx1-ubyte", "9018921c3c673c538a1fc5bad174d6f9"),
            ("t10k-images-idx3-ubyte", "8181f5470baa50b63fa0f6fddb340f0a"),
            ("t10k-labels-idx1-ubyte", "15d484375f8d13e6eb1aabb0c3f46965"),
        ),
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        ),
    )
)
_add(
    DatasetInfo(
        name="cifar10",
        description="colour photographs of 10 kinds of things (Krizhevsky 2009)",
        in_shape=(3, 32, 32),
        class_names=_CIFAR10_NAMES,
        train_size=50_000,
        test_size=10_000,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        reader=read_cifar10,
        subfolder="cifar-10-batches-py",
        files=(
            ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
            ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
            ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
            ("data_batch_4", "634d18415352ddfa80567beed471001a"),
            ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
            ("test_batch", "40351d587109b95175f43aff81a1287e"),
        ),
        mirrors=_KRIZHEVSKY,
        archive=("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
    )
)
_add(
    DatasetInfo(
        name="cifar100",
        description="colour photographs of 100 kinds of things (Krizhevsky 2009)",
        in_shape=(3, 32, 32),
        class_names=_CIFAR100_NAMES,
        train_size=50_000,
        test_size=10_000,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        reader=read_cifar100,
        subfolder="cifar-100-python",
        files=(
            ("train", "16019d7e3df5f24257cddd939b257f8d"),
            ("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),
        ),
        mirrors=_KRIZHEVSKY,
        archive=("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
    )
)
_add(
    DatasetInfo(
        name="svhn",
        description="digits cropped from photographs of house numbers (Netzer et al. 2011)",
        in_shape=(3, 32, 32),
        class_names=_DIGIT_NAMES,
        train_size=73_257,
        test_size=26_032,
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        reader=read_svhn,
        subfolder="SVHN",
        files=(
            ("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
            ("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
        ),
        mirrors=("http://ufldl.stanford.edu/housenumbers/",),
    )
)

"""Records of the data sets that come with the core: names, official files, checksums, other layouts. No torch.

A file's url may end in "#member": then it is a member of the archive at that address.
Checksums are those of the official files: IDX packed and unpacked, CIFAR-10 binary batches.
"""

from __future__ import annotations

from collections.abc import Mapping

from iclr18cli.plugin import DatasetSpec, File

DIGITS = tuple("0123456789")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")

MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
USPS_URL = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/"
SVHN_URL = "http://ufldl.stanford.edu/housenumbers/"
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
STL10_URL = "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"

ARCHIVES: Mapping[str, File] = {
    CIFAR10_URL: File(
        path="cifar-10-binary.tar.gz",
        bytes=170_052_171,
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        url=CIFAR10_URL,
    ),
    STL10_URL: File(path="stl10_binary.tar.gz", bytes=2_640_397_119, url=STL10_URL),
}
"""Archives by address; one that is not listed here is checked by its members alone."""

_IDX = (
    ("train-images-idx3-ubyte", "train", 47_040_016),
    ("train-labels-idx1-ubyte", "train", 60_008),
    ("t10k-images-idx3-ubyte", "test", 7_840_016),
    ("t10k-labels-idx1-ubyte", "test", 10_008),
)


def _packed(folder: str, url: str, facts: tuple[tuple[int, str], ...]) -> tuple[File, ...]:
    return tuple(
        File(path=f"{folder}/{name}.gz", bytes=size, sha256=sha256, url=f"{url}{name}.gz", splits=(split,))
        for (name, split, _), (size, sha256) in zip(_IDX, facts, strict=True)
    )


def _unpacked(folder: str, facts: tuple[str, ...]) -> tuple[File, ...]:
    return tuple(
        File(path=f"{folder}/{name}", bytes=size, sha256=sha256, splits=(split,))
        for (name, split, size), sha256 in zip(_IDX, facts, strict=True)
    )


_CIFAR10_BIN = (
    ("data_batch_1", "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"),
    ("data_batch_2", "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"),
    ("data_batch_3", "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"),
    ("data_batch_4", "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"),
    ("data_batch_5", "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"),
    ("test_batch", "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"),
)


def _cifar_split(batch: str) -> tuple[str, ...]:
    return ("test",) if batch == "test_batch" else ("train",)


def _stl10(name: str, images: int, split: str, *, pixels: int = 3 * 96 * 96) -> File:
    member = f"stl10_binary/{name}.bin"
    return File(path=member, bytes=images * pixels, url=f"{STL10_URL}#{member}", splits=(split,))


TEXT_SPLITS = ("train", "valid", "test")
_PTB = (
    ("train", 5_101_618, "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf"),
    ("valid", 399_782, "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2"),
    ("test", 449_945, "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0"),
)

BUILTIN: tuple[DatasetSpec, ...] = (
    DatasetSpec(
        name="digits",
        task="classify",
        summary="1,797 real handwritten digits, 8x8 grey; 1,437 train, 360 test",
        load="iclr18cli.data.offline:load_digits",
        license="CC BY 4.0 (UCI, E. Alpaydin and C. Kaynak), ships with scikit-learn",
        offline=True,
    ),
    DatasetSpec(
        name="fonts",
        task="classify",
        summary="Printed digits in 20 fonts, 8x8 grey; 1,800 train, 400 test in other fonts",
        load="iclr18cli.data.fonts:load",
        license="drawn here; fonts that ship with matplotlib and Pillow",
        offline=True,
        argument="[SIZE]",
    ),
    DatasetSpec(
        name="rings",
        task="classify",
        summary="Two classes in the plane, inside and outside a circle; 4,000 train, 4,000 test",
        load="iclr18cli.data.offline:load_rings",
        license="generated",
        offline=True,
        argument="[N]",
    ),
    DatasetSpec(
        name="mnist",
        task="classify",
        summary="Handwritten digits, 28x28 grey; 60,000 train, 10,000 test",
        load="iclr18cli.data.idx:load_mnist",
        files=_packed(
            "MNIST/raw",
            MNIST_URL,
            (
                (9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
                (28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
                (1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
                (4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
            ),
        ),
        license="CC BY-SA 3.0, Y. LeCun and C. Cortes",
    ),
    DatasetSpec(
        name="fashion-mnist",
        task="classify",
        summary="Articles of clothing, 28x28 grey; 60,000 train, 10,000 test",
        load="iclr18cli.data.idx:load_fashion_mnist",
        files=_packed(
            "FashionMNIST/raw",
            FASHION_URL,
            (
                (26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
                (29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
                (4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
                (5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
            ),
        ),
        license="MIT, Zalando SE",
    ),
    DatasetSpec(
        name="usps",
        task="classify",
        summary="Handwritten digits of postal codes, 16x16 grey; 7,291 train, 2,007 test",
        load="iclr18cli.data.usps:load",
        files=(
            File(path="usps/usps.bz2", url=f"{USPS_URL}usps.bz2", splits=("train",)),
            File(path="usps/usps.t.bz2", url=f"{USPS_URL}usps.t.bz2", splits=("test",)),
        ),
        license="none stated; given to the research community by AT&T",
    ),
    DatasetSpec(
        name="svhn",
        task="classify",
        summary="House numbers, cropped digits, 32x32 RGB; 73,257 train, 26,032 test",
        load="iclr18cli.data.svhn:load",
        files=tuple(
            File(path=f"svhn/{split}_32x32.mat", url=f"{SVHN_URL}{split}_32x32.mat", splits=(split,))
            for split in ("train", "test")
        ),
        license="non-commercial use only (Netzer et al. 2011)",
    ),
    DatasetSpec(
        name="cifar10",
        task="classify",
        summary="Photographs of ten classes, 32x32 RGB; 50,000 train, 10,000 test",
        load="iclr18cli.data.cifar:load",
        files=tuple(
            File(
                path=f"cifar-10-batches-bin/{batch}.bin",
                bytes=30_730_000,
                sha256=sha256,
                url=f"{CIFAR10_URL}#cifar-10-batches-bin/{batch}.bin",
                splits=_cifar_split(batch),
            )
            for batch, sha256 in _CIFAR10_BIN
        ),
        license="none stated; cite Krizhevsky (2009)",
    ),
    DatasetSpec(
        name="cifar10-lossless",
        task="classify",
        summary="The first 4,000 train and 1,000 test images of CIFAR-10, exact pixels",
        load="iclr18cli.data.cifar:load_lossless",
        files=(
            File(
                path="cifar10-subset/lossless_train_4000.npz",
                bytes=11_341_031,
                sha256="feb876fa5b138b5253ecaf7c9e457123b3a185c3423f15f58b05c7e028425a64",
                splits=("train",),
            ),
            File(
                path="cifar10-subset/lossless_test_1000.npz",
                bytes=2_829_934,
                sha256="31a94b1886e9dc3cad51875494debab5a2516740c92339510e4709b6b3c6ef08",
                splits=("test",),
            ),
        ),
        license="none stated; cite Krizhevsky (2009)",
    ),
    DatasetSpec(
        name="cifar10-jpeg",
        task="classify",
        summary="50,000 train and 5,000 test images of CIFAR-10 after JPEG compression",
        load="iclr18cli.data.cifar:load_jpeg",
        files=(
            File(
                path="cifar10-subset/jpeg_train_50000.npz",
                bytes=46_492_011,
                sha256="fa8e01c0cca1c37f03f21877a85c10f1f0440a739166aa66004553e5f86c208c",
                splits=("train",),
            ),
            File(
                path="cifar10-subset/jpeg_test_5000.npz",
                bytes=4_651_741,
                sha256="3445e774be19d4e4768146f2204229520b2e7c7d7290ff95cc00b7cf140f688a",
                splits=("test",),
            ),
        ),
        license="none stated; cite Krizhevsky (2009)",
    ),
    DatasetSpec(
        name="stl10",
        task="classify",
        summary="Photographs of ten classes, 96x96 RGB; 5,000 train, 8,000 test",
        load="iclr18cli.data.stl10:load",
        files=(
            _stl10("train_X", 5_000, "train"),
            _stl10("train_y", 5_000, "train", pixels=1),
            _stl10("test_X", 8_000, "test"),
            _stl10("test_y", 8_000, "test", pixels=1),
        ),
        license="none stated; images from ImageNet, cite Coates, Lee, Ng (2011)",
        argument="[SIZE]",
    ),
    DatasetSpec(
        name="stl10-unlabeled",
        task="classify",
        summary="STL-10 without labels: 100,000 photographs to train, the 8,000 test images; one class",
        load="iclr18cli.data.stl10:load_unlabeled",
        files=(_stl10("unlabeled_X", 100_000, "train"), _stl10("test_X", 8_000, "test")),
        license="none stated; images from ImageNet, cite Coates, Lee, Ng (2011)",
        argument="[SIZE]",
    ),
    DatasetSpec(
        name="celeba",
        task="classify",
        summary="202,599 aligned photographs of faces, centre cut and scaled to 64x64 RGB; one class",
        load="iclr18cli.data.celeba:load",
        files=(File(path="celeba/img_align_celeba/000001.jpg"),),
        splits=("train", "valid", "test"),
        license="non-commercial research, MMLAB (Liu, Luo, Wang, Tang 2015)",
        argument="[SIZE]",
    ),
    DatasetSpec(
        name="python-docs",
        task="language",
        summary="The language reference in every CPython: 65,000 words of prose and code",
        load="iclr18cli.text.corpus:load_python_docs",
        splits=TEXT_SPLITS,
        license="PSF License, ships with Python",
        offline=True,
    ),
    DatasetSpec(
        name="ptb",
        task="language",
        summary="Penn Treebank, Mikolov's preparation, 10,000 words; 929,589 / 73,760 / 82,430 tokens",
        load="iclr18cli.text.corpus:load_ptb",
        files=tuple(
            File(path=f"ptb/ptb.{split}.txt", bytes=size, sha256=sha256, splits=(split,))
            for split, size, sha256 in _PTB
        ),
        splits=TEXT_SPLITS,
        license="LDC, restricted: local research only",
    ),
    DatasetSpec(
        name="wikitext-2",
        task="language",
        summary="WikiText-2, words, 33,278 of them; 2,088,628 / 217,646 / 245,569 tokens",
        load="iclr18cli.text.corpus:load_wikitext2",
        files=tuple(File(path=f"wikitext-2/wiki.{split}.tokens", splits=(split,)) for split in TEXT_SPLITS),
        splits=TEXT_SPLITS,
        license="CC BY-SA 3.0",
    ),
    DatasetSpec(
        name="lines",
        task="language",
        summary="Your own text: a file, or a folder with train.txt, valid.txt, test.txt",
        load="iclr18cli.text.corpus:load_lines",
        splits=TEXT_SPLITS,
        argument="PATH",
    ),
    DatasetSpec(
        name="subj",
        task="classify",
        summary="Subjective and objective sentences as counts of words; 8,000 train, 2,000 test",
        load="iclr18cli.data.sentences:load_subj",
        files=(
            File(
                path="zhai-text/subj.npz",
                bytes=352_255,
                sha256="66945d300258f9d65781a49a4207b22f206d372863a06fe715b4d19b89f9c320",
            ),
        ),
        license="none stated; research use, cite Pang and Lee (2004)",
    ),
    DatasetSpec(
        name="mr",
        task="classify",
        summary="Positive and negative sentences of film reviews as counts of words; 8,529 train, 2,131 test",
        load="iclr18cli.data.sentences:load_mr",
        files=(
            File(
                path="zhai-text/mr.npz",
                bytes=324_597,
                sha256="c77faf637d89fd044029bd8dcc03daf892f02cfc976ee80dbc0201d2f085be3b",
            ),
        ),
        license="none stated; research use, cite Pang and Lee (2005)",
    ),
    DatasetSpec(
        name="sentences",
        task="classify",
        summary="Your own labelled sentences as counts of words: lines of label, tab, text",
        load="iclr18cli.data.sentences:load",
        argument="PATH",
    ),
    DatasetSpec(
        name="npz",
        task="classify",
        summary="Your own arrays: x and y, or x_train, y_train, x_test, y_test",
        load="iclr18cli.data.archives:load",
        argument="PATH",
    ),
    DatasetSpec(
        name="folder",
        task="classify",
        summary="Your own images: PATH/train/CLASS/*.png and PATH/test/..., or PATH/CLASS/*.png",
        load="iclr18cli.data.folder:load",
        argument="PATH[?size=N]",
    ),
)

ALTERNATIVES: Mapping[str, tuple[tuple[File, ...], ...]] = {
    "mnist": (
        _unpacked(
            "MNIST/raw",
            (
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
        ),
    ),
    "fashion-mnist": (
        _unpacked(
            "FashionMNIST/raw",
            (
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
        ),
    ),
    "usps": (
        (File(path="usps/zip.train.gz", splits=("train",)), File(path="usps/zip.test.gz", splits=("test",))),
        (File(path="usps/usps.h5"),),
    ),
    "wikitext-2": (tuple(File(path=f"wikitext-2/{split}.txt", splits=(split,)) for split in TEXT_SPLITS),),
    "subj": (
        (File(path="text-classification/subj.all"),),
        tuple(File(path=f"rotten_imdb/{name}.tok.gt9.5000") for name in ("plot", "quote")),
    ),
    "mr": tuple(
        tuple(File(path=f"{folder}/rt-polarity.{end}") for end in ("pos", "neg"))
        for folder in ("text-classification", "rt-polaritydata")
    ),
    "ptb": (tuple(File(path=f"penn/{split}.txt", splits=(split,)) for split in TEXT_SPLITS),),
    "cifar10": (
        tuple(File(path=f"cifar-10-batches-py/{batch}", splits=_cifar_split(batch)) for batch, _ in _CIFAR10_BIN),
    ),
}
"""Other sets of files, by name of the data set, that hold the same data; a loader reads the first that is complete."""

"""The examples at the end of every `--help`: commands to paste, as they stand."""

from __future__ import annotations

from dataclasses import dataclass

DEMO = "results/demo, from `tmbench sweep --out results/demo`"
ALONE = "The embedded benchmark, whose images and weights are in the package"
IMAGENET = "ImageNet's validation images in imagenet/val/"


@dataclass(frozen=True)
class Example:
    """A command and what it does. One that needs nothing works in an empty folder, without a download."""

    what: str
    command: str
    """In lines of at most 76 characters, which a backslash joins."""
    needs: str = ""
    """What must be there first: files of the reader's, a GPU, or results of another example."""


EXAMPLES: dict[str, list[Example]] = {
    "": [
        Example(
            "The embedded benchmark, whose images and weights are in the package", "tmbench sweep --out results/demo"
        ),
        Example(
            "Is the difference between two methods more than chance?", "tmbench compare dhtm tome results/demo", DEMO
        ),
        Example(
            "FLOPs of any timm ViT, without its weights",
            "tmbench flops --models deit_small_patch16_224 --methods dhtm,tome \\\n  --budgets 0.9,0.7",
        ),
        Example("What there is, and what flags take", "tmbench list methods"),
    ],
    "sweep": [
        Example(
            "The embedded benchmark, whose images and weights are in the package", "tmbench sweep --out results/demo"
        ),
        Example("Some methods at some budgets", "tmbench sweep --methods dhtm,tome,random --budgets 0.8,0.6"),
        Example(
            "Options of a method, its own knob, and numbers for a script",
            "tmbench sweep --methods dhtm,dhtm:connectivity=4 --k 20,40 \\\n  --limit 200 --json > connectivity.json",
        ),
        Example(
            "DeiT-Tiny, whose weights come from the hub, on a GPU",
            "tmbench sweep --models deit_tiny_patch16_224 --dataset imagenet/val \\\n"
            "  --methods dhtm,tome,random --budgets 0.9,0.7,0.5 --limit 5000 \\\n"
            "  --device cuda --dtype bfloat16 --out results/tiny",
            IMAGENET,
        ),
    ],
    "run": [
        Example(
            "Table 2 of the DHTM paper, on the embedded benchmark",
            "tmbench run table2 --dataset demo --out results/table2",
        ),
        Example("A tenth of its images", "tmbench run fig4 --dataset demo --limit 40 --seeds 1"),
        Example(
            "Table 1 of the DHTM paper, on the models that it is about",
            "tmbench run table1 --dataset imagenet/val --device cuda --out results/table1",
            IMAGENET,
        ),
        Example(
            "An experiment of your own",
            "tmbench run mine.toml --out results/mine",
            "a copy of a file in experiments/, edited, as mine.toml",
        ),
    ],
    "report": [
        Example("Everything about one sweep", "tmbench report results/demo -o report.html", DEMO),
        Example(
            "With measured times, of the same methods at the same budgets",
            "tmbench report results/demo results/speed -o report.html",
            "both folders, of `tmbench sweep` and of `tmbench profile`",
        ),
    ],
    "show": [
        Example("An image of the embedded benchmark at 0.7 of the FLOPs", "tmbench show"),
        Example(
            "Others, and what the class token attends to",
            "tmbench show --methods dhtm,tome --budget 0.5 --limit 3 --attention",
        ),
        Example("Learned methods, with the weights of a token", "tmbench show --methods sit,sinkhorn --token 3"),
        Example("Merge after merge", "tmbench show --animate --out merges.gif"),
        Example(
            "A photograph, in DeiT-Tiny",
            "tmbench show dog.jpg --model deit_tiny_patch16_224 --attention",
            "a photograph dog.jpg, and the hub for the weights",
        ),
    ],
    "figures": [
        Example("All figures that results are enough for", "tmbench figures results/demo", DEMO),
        Example("One of them, for a paper", "tmbench figures results/demo --only fig1 --formats pdf --out paper", DEMO),
        Example("The figure that shows no results", "tmbench figures --only fig3 --out paper"),
    ],
    "tables": [
        Example("All tables that results are enough for", "tmbench tables results/demo", DEMO),
        Example("One of them, elsewhere", "tmbench tables results/demo --only results --out paper", DEMO),
    ],
    "compare": [
        Example("Two methods at each budget", "tmbench compare dhtm tome results/demo", DEMO),
        Example("A method with the unreduced model", "tmbench compare dhtm none results/demo", DEMO),
        Example(
            "Between the budgets that were run", "tmbench compare dhtm random results/demo --at 0.75,0.65,0.55", DEMO
        ),
    ],
    "audit": [
        Example("What follows from the paper alone", "tmbench audit"),
        Example(
            "With losses measured on your images",
            "tmbench audit --models deit_tiny_patch16_224 --dataset imagenet/val \\\n  --device cuda --out audit/tiny",
            IMAGENET,
        ),
    ],
    "profile": [
        Example("The embedded model on the CPU", "tmbench profile --batch-sizes 1,8 --seconds 2 --out results/speed"),
        Example(
            "DeiT-Small on a GPU; random weights do",
            "tmbench profile --models deit_small_patch16_224 \\\n"
            "  --methods dhtm,tome,random --budgets 0.7 --batch-sizes 1,32,256,max \\\n"
            "  --dtypes bfloat16 --modes eager,compile,graph --device cuda",
            "a GPU",
        ),
    ],
    "flops": [
        Example(
            "DHTM at k merges in each of three blocks, on the models of its paper",
            "tmbench flops --methods dhtm,random --k 0,40,48",
        ),
        Example(
            "The settings by which methods reach the same budget",
            "tmbench flops --models vit_small_patch16_224 --methods dhtm,tome,dpc_knn \\\n  --budgets 0.9,0.7,0.5",
        ),
    ],
    "list": [
        Example("The methods with their options", "tmbench list methods"),
        Example("The names of the models, for a script", "tmbench list models --json"),
    ],
    "train": [
        Example(
            "The embedded model with SiT at 0.7 of the FLOPs",
            "tmbench train --recipe demo_finetune --method sit --budget 0.7 \\\n"
            "  --dataset fashion_mnist --out runs/sit",
            "the files of Fashion-MNIST in fashion_mnist/",
        ),
        Example(
            "What came of it, beside the methods off the shelf",
            "tmbench sweep --methods sit,dhtm --budgets 0.7 --weights runs/sit",
            "what the command above wrote",
        ),
        Example(
            "A few images of your own, with keys of the recipe changed",
            "tmbench train --recipe demo_finetune --method tome --budget 0.7 \\\n"
            "  --dataset my_images --set epochs=3 --set holdout=0 \\\n"
            "  --set batch_size=16 --out runs/mine",
            "class folders in my_images/train/",
        ),
        Example(
            "DeiT-Small on eight GPUs",
            "torchrun --nproc-per-node 8 -m tokenmerge_bench train \\\n"
            "  --model deit_small_patch16_224 --method sit --budget 0.7 \\\n"
            "  --recipe tokenreduction_30ep --dataset imagenet \\\n"
            "  --device cuda --workers 12 --out runs/sit-small",
            "ImageNet in imagenet/train/ and imagenet/val/",
        ),
    ],
}
"""By command; without a name, those of `tmbench` alone."""

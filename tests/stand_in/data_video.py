"""Stands in for CogVideoX's data set: items of its form, one for each file of a folder."""

import os
from pathlib import Path

import torch
from torch.utils.data import Dataset


class SFTDataset(Dataset):
    def __init__(self, data_dir, video_size, fps, max_num_frames):
        self.files = sorted(Path(data_dir).iterdir())
        self.shape, self.fps = (max_num_frames, 3, *video_size), fps

    @classmethod
    def create_dataset_function(cls, path, args, **params):
        return cls(path, **params)

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        if "READS" in os.environ:
            with Path(os.environ["READS"]).open("a") as reads:
                reads.write(f"{self.files[index]}\n")
        frames, _, height, width = self.shape
        speed = float(self.files[index].read_text())
        time, y, x = (
            torch.arange(frames).view(-1, 1, 1) / 8,
            torch.arange(height).view(-1, 1) / height,
            torch.arange(width),
        )
        phases = (speed * time + y, speed * time - x / width, y + x / width + speed)
        video = torch.stack([torch.sin(6.28 * phase).expand(frames, height, width) for phase in phases], dim=1)
        return {"mp4": 0.8 * video, "txt": f"speed {index % 2}", "num_frames": frames, "fps": self.fps}

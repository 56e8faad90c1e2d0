"""The book's vocabulary: everything that two notebooks share, by name.

One equation holds it together:

    y = M F S x + n

The image x (complex) is seen by the coils S (1 for a single coil), Fourier transformed (F), sampled where the mask M
is true, with noise n. Reconstruction looks for x. As one object it is `Acquisition`: A(x), and its adjoint A.H(y).

Images and k-space are complex64 tensors with the spatial axes last, (..., H, W). H is the readout; W is the
phase-encode axis, along which Cartesian masks leave out lines. In front of them stand coils or frames, then the
batch or the slices. A real and an imaginary channel exist only inside networks.

This file is a contents page: the definitions live in mri_parts/, one file for each block below. The blocks come in
the order of the floors, and a part imports only what lower floors hold. Twenty definitions to read first:

    fft2c, ifft2c, center_crop      the centred transform, and the crop      (fourier)
    sampling_mask, grappa_mask      which lines are measured                 (masks)
    Acquisition, keep_measured      the equation, and data consistency       (classical)
    total_variation, low_rank       reconstruction without learning          (classical)
    ssim, psnr, bootstrap_interval  how good, and how sure                   (metrics)
    read_volume, Volume             a file of k-space                        (volumes)
    UNet, Unrolled                  the networks                             (networks)
    SliceDataset, Sample            slices, undersampled on the fly          (dataset)
    reconstruct, score              a method on a batch, on a data set       (methods)
    Loss                            what training minimises                  (training)
    Task                            what one kind of experiment changes      (tasks)

A new mask, loss, metric, network, reader or task is one definition and one registration, from a notebook too: in
MASKS, LOSSES, METRICS, MODELS, READERS or TASKS.
"""
# ruff: noqa: F401, I001  (a contents page, in the order of the floors)

# Faults in one line, a lookup that guesses
from mri_parts.basics import (
    BadInput,
    ROOT,
    choose,
    explaining,
    hash_of,
    mean,
    new_folder,
    read_call,
    read_numbers,
    replace_file,
    write_call,
)

# Fourier transforms, crop, coil combination
from mri_parts.fourier import center_crop, crop_readout, fft2c, ifft2c, nufft, nufft_adjoint, rss, smooth_phase

# Metrics, losses, intervals
from mri_parts.metrics import (
    CONVENTIONS,
    LOSSES,
    METRICS,
    METRIC_STYLES,
    PARTS,
    attained,
    bootstrap_interval,
    compare_paired,
    find_shift,
    head_mask,
    hidden_share,
    holm,
    interval,
    mae,
    measure,
    metric_cells,
    metric_conventions,
    nmse,
    psnr,
    ssim,
    ssim_loss,
    ssim_map,
    summarize,
    summarize_reading,
)

# Several processes, progress, an orderly stop
from mri_parts.processes import (
    EXIT_RESTART,
    STOP_SIGNALS,
    Stopped,
    gather,
    join_processes,
    leave_processes,
    own_share,
    parallelize,
    progress,
    rank_and_size,
)

# Which samples are measured
from mri_parts.masks import (
    MASKS,
    MaskKind,
    effective_acceleration,
    grappa_mask,
    mask_kinds,
    matched_sampling,
    point_spread,
    sampling_mask,
)

# The one equation and what solves it without learning
from mri_parts.classical import (
    Acquisition,
    WAVELETS,
    guessed_share,
    homodyne,
    keep_measured,
    lost_and_invented,
    low_rank,
    pocs,
    sense,
    total_variation,
    unmeasured,
    view_sharing,
    wavelet,
    wavelet_transform,
)

# Motion between shots, off-resonance, decay over an echo train
from mri_parts.effects import AIR, ORDERS, air_field, echo_decay, move_shots, off_resonance, order_lines

# Files of k-space
from mri_parts.volumes import (
    DEFAULT_AXES,
    HEADER,
    READERS,
    Reader,
    Volume,
    read_folder,
    read_train_and_val,
    read_volume,
    split_by_subject,
    write_volume,
)

# One cell of a notebook as flags and papermill parameters
from mri_parts.parameters import add_flags, flag_parser, read_given, read_parameters, run_or_explain

# Networks from k-space to image
from mri_parts.networks import (
    Attention,
    MODELS,
    MagnitudeNetwork,
    ReconResNet,
    ResidualBlock,
    UNet,
    Unrolled,
    as_channels,
    as_complex,
    build_model,
    inner_network,
    model_arguments,
    model_axes,
    normalize,
)

# Simulated heads and coils
from mri_parts.scanner import (
    ACQUISITIONS,
    SEQUENCES,
    coil_sensitivities,
    demo_data,
    noise_free,
    simulate_head,
    spin_echo_signal,
)

# What is suspicious about files
from mri_parts.checks import (
    Finding,
    centre_share,
    check_split,
    find_centre,
    find_leaks,
    look,
    looks_interpolated,
    looks_magnitude_only,
    looks_noiseless,
    see,
    spectrum_extent,
    volume_warnings,
)

# Images as volumes
from mri_parts.images import output_formats, read_images

# Simulated hearts
from mri_parts.heart import demo_cine, simulate_cine

# Slices and batches
from mri_parts.dataset import (
    SAMPLE_FIELDS,
    SameSizeBatches,
    Sample,
    SliceDataset,
    cache_volumes,
    make_loader,
    susceptibility_phase,
    training_batches,
    vary_scan,
)

# Scans of other formats
from mri_parts.formats import FORMATS, Format, Scan, arrange, as_measured, centred, emulate_single_coil, read_scan

# Raw data of scanners
from mri_parts.raw import read_mrd

# Reconstruct, tune, score
from mri_parts.methods import (
    CLASSICAL,
    Machine,
    PerfectGuess,
    adapted,
    average,
    choose_machine,
    classical_method,
    mirrored,
    reconstruct,
    reconstruct_volume,
    score,
    score_each,
    tune,
    tv_method,
    whole_image,
    zero_filled,
)

# What the training loop needs besides itself
from mri_parts.training import (
    ADVERSARIAL,
    DOMAINS,
    Adversary,
    Loss,
    PatchDiscriminator,
    build_adversary,
    compressed_kspace,
    compile_convolutions,
    copy_weights,
    count_parameters,
    export_weights,
    load_model,
    read_adversary,
    read_checkpoint,
    roughness,
    save_checkpoint,
    step_hooks,
    training_warnings,
    vgg_features,
)

# Pictures, tables, sliders
from mri_parts.figures import (
    COLOURS,
    METHOD_STYLES,
    check_answer,
    compare,
    explore,
    format_table,
    log_magnitude,
    mask_image,
    mask_title,
    method_colour,
    method_name,
    psf_image,
    save_figure,
    show_controls,
    show_curves,
    show_file,
    show_images,
    show_sample,
    show_seen,
    show_source,
    show_table,
    to_array,
    use_book_style,
)

# Kinds of experiments
from mri_parts.tasks import TASKS, Task, read_data, read_files, settle, show_check, tell_other_sampling, tuned_classical

# What metrics.json says, as tables
from mri_parts.tables import best_rivals, lead_lines, metrics_table, share_cell, show_metrics

# Run folders
from mri_parts.runs import (
    Run,
    RunState,
    SAME_EXPERIMENT,
    changed_parameters,
    compare_runs,
    describe,
    describe_data,
    peak_memory,
    provenance,
    quality_warnings,
    read_run,
    save_progress,
    save_run,
    summarize_run,
    typed_command,
    write_reconstruction,
)

# Chapter 00
from mri_parts.playground import playground, show_methods

# Chapter 13
from mri_parts.super_resolution import SRResNet, bicubic, demo_sr

# Chapter 14
from mri_parts.cine import SpaceTimeConv, in_windows, read_cine, sliding_window, temporal_tv

# Chapter 15
from mri_parts.coils import (
    PARALLEL,
    SENSITIVITIES,
    calibration_columns,
    compress_coils,
    ending_measured,
    espirit_maps,
    g_factor,
    grappa,
    grappa_kernels,
    noise_covariance,
    parallel_method,
    prewhiten,
    ratio_maps,
    sensitivity_maps,
    whitened_copy,
    zero_filled_rss,
)

# Chapter 20
from mri_parts.priors import Denoiser, PlugAndPlay, noise_levels, plug_and_play, posterior_samples

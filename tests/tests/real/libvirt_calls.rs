//! Calls to a real libvirtd that hangs, dies in the middle of one, or has many domains.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::task::JoinSet;
use warmd_endpoint_libvirt::libvirt::{
    DomainXml, Lane, LibvirtClient, LibvirtErrorKind as Kind, Reason, RunState, XmlForm,
};
use warmd_tests::{Libvirtd, asynchronous, run};

/// The deadline of a call to the daemon that hangs.
const ANSWER: Duration = Duration::from_secs(4);

fn xml(name: &str, number: u32) -> String {
    format!(
        "<domain type='qemu'><name>{name}</name><uuid>00000000-0000-4000-8000-{number:012}</uuid>\
         <memory unit='MiB'>32</memory><os><type arch='x86_64' machine='q35'>hvm</type></os></domain>"
    )
}

#[test]
fn a_daemon_that_hangs_costs_a_deadline_and_so_many_threads() {
    run(|dir| {
        let mut libvirt = Libvirtd::start(dir)?;
        let client = LibvirtClient::with_deadline(libvirt.uri(), ANSWER);
        asynchronous(async {
            ensure!(client.domains().await?.is_empty());
            libvirt.freeze()?;
            let begun = Instant::now();
            let mut asked = JoinSet::new();
            for _ in 0..4 {
                let client = client.clone();
                asked.spawn(async move { client.domains().await });
            }
            for answer in asked.join_all().await {
                let error = answer.err().context("a hanging daemon answered")?;
                ensure!(error.kind == Kind::Timeout && error.to_string().contains("no answer"), "{error}");
            }
            // All wait at the same time, not one after another.
            ensure!(begun.elapsed() < 4 * ANSWER, "{:?}", begun.elapsed());
            let error = client.domains().await.err().context("a hanging daemon answered")?;
            ensure!(error.kind == Kind::Timeout && error.to_string().contains("4 earlier calls"), "{error}");
            libvirt.thaw()?;
            let deadline = Instant::now() + Duration::from_mins(1);
            while let Err(error) = client.domains().await {
                ensure!(Instant::now() < deadline, "it does not come back: {error}");
            }
            Ok(())
        })
    });
}

#[test]
fn dead_libvirtd_is_unreachable_and_never_a_missing_domain() {
    run(|dir| {
        let mut libvirt = Libvirtd::start(dir)?;
        let client = LibvirtClient::new(libvirt.uri());
        asynchronous(async {
            client.define(&xml("one", 1)).await?;
            let id = client.domains().await?.first().context("no domain")?.0;
            ensure!(client.state(id).await?.state == RunState::Off);
            libvirt.freeze()?;
            let asked = {
                let client = client.clone();
                tokio::spawn(async move { client.state(id).await })
            };
            tokio::time::sleep(Duration::from_millis(500)).await;
            libvirt.kill()?;
            let error = asked.await?.err().context("a dead daemon answered")?;
            ensure!(error.kind == Kind::Unreachable, "{:?}: {error}", error.kind);
            ensure!(client.is_absent(id).await.is_err(), "absence was told by nobody");
            libvirt.resume()?;
            ensure!(client.state(id).await?.state == RunState::Off && !client.is_absent(id).await?);
            client.undefine(id).await?;
            let error = client.state(id).await.err().context("it is gone")?;
            ensure!(error.kind == Kind::NoSuchDomain && client.is_absent(id).await?, "{error}");
            Ok(())
        })
    });
}

#[test]
fn power_metadata_and_autostart_are_what_libvirt_has() {
    run(|dir| {
        let libvirt = Libvirtd::start(dir)?;
        let client = LibvirtClient::new(libvirt.uri());
        asynchronous(async {
            client.define(&xml("one", 1)).await?;
            let error = client.define(&xml("one", 2)).await.err().context("the name is taken")?;
            ensure!(error.kind == Kind::Exists, "{error}");
            let id = client.domains().await?.first().context("no domain")?.0;
            ensure!(!client.autostart(id, Lane::Urgent).await?);
            client.set_autostart(id, true).await?;
            ensure!(client.autostart(id, Lane::Urgent).await?);
            let uri = DomainXml::MOVED_NAMESPACE;
            client.set_moved_mark(id, "<moved to='x'/>").await?;
            ensure!(client.dump_xml(id, XmlForm::Persistent).await?.contains(uri));
            client.remove_moved_mark(id).await?;
            client.remove_moved_mark(id).await?;
            ensure!(!client.dump_xml(id, XmlForm::Persistent).await?.contains(uri));
            ensure!(client.state(id).await?.reason == Reason::Unknown);
            let before = Instant::now();
            client.start(id).await?;
            client.start(id).await?;
            ensure!(client.state(id).await?.state == RunState::Running);
            libvirt.virsh(["suspend", "one"])?;
            let status = client.state(id).await?;
            ensure!((status.state, status.reason) == (RunState::Paused, Reason::User), "{status:?}");
            let error = client.start(id).await.err().context("paused is not started")?;
            ensure!(error.kind == Kind::AlreadyActive, "{error}");
            client.abort_job(id).await?;
            client.destroy(id).await?;
            client.destroy(id).await?;
            ensure!(client.state(id).await?.reason == Reason::Destroyed);
            tokio::time::sleep(Duration::from_millis(300)).await;
            ensure!(client.ran_since(id, before) == Some(true), "{:?}", client.happenings(id));
            ensure!(client.ran_since(id, Instant::now()) == Some(false));
            Ok(())
        })
    });
}

#[test]
fn two_hundred_domains_cost_no_process() {
    run(|dir| {
        let libvirt = Libvirtd::start(dir)?;
        let client = LibvirtClient::new(libvirt.uri());
        asynchronous(async {
            for number in 0..200 {
                client.define(&xml(&format!("vm{number}"), number)).await?;
            }
            let begun = Instant::now();
            let domains = client.domains().await?;
            for (id, _) in &domains {
                let domain = client.domain(*id).await?;
                client.disk_sizes(*id, &domain.disks).await?;
                client.state(*id).await?;
                client.persistent_and_saved(*id).await?;
                client.checkpoint_names(*id).await?;
                client.snapshot_names(*id).await?;
            }
            let took = begun.elapsed();
            let begun = Instant::now();
            for (id, _) in domains.iter().take(10) {
                libvirt.virsh(["domstate", &id.to_string()])?;
            }
            eprintln!("200 domains, 1200 calls: {took:?}; ten virsh: {:?}", begun.elapsed());
            ensure!(domains.len() == 200, "{}", domains.len());
            Ok(())
        })
    });
}
